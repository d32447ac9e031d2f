"""The eight claims about HoloGrad, decided by seven experiments."""
