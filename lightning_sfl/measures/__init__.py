"""Measures: pure functions on Gram matrices, states and gradients; undefined values are NaN, never a guess."""
