"""Solvers of (K + ridge I) alpha = y. None returns a solution whose residual it has not recomputed."""
