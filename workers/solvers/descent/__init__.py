"""Solvers that take gradient steps on some rows at a time."""
