"""Solvers that act on eigenvalues."""
