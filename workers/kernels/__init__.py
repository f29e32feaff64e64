"""Kernels: of a model (definitions, views, features, exact blocks), formulas, and random features; the library over them."""
