"""The shipped configs; installed they are found with `importlib.resources.files("lightning_sfl.configs")`."""
