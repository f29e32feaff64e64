"""Solvers of generalised linear models: other losses than the square."""
