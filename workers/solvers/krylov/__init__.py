"""Solvers that take products of the whole matrix with a few vectors."""
