"""Empirical kernels: definitions, features, exact and projected blocks, and the library functions over them."""
