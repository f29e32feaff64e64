"""Analyses of stored runs: each turns kernels, solutions and outputs into a table, a summary and a picture."""
