"""Equivalences and self-tests on somebody's own network, cut, data and method: what `train.py check` runs."""
