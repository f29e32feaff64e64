"""Solvers that factorise the whole matrix."""
