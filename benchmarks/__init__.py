"""Measurements of the platform; a package, since another of this name (opacus installs one) would be taken for it."""
