"""Solvers of models whose coefficients live on a few centres."""
