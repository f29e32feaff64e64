"""Kernels given by formulas: no model, no weights. Distances, dot products, infinite width, graphs and paths."""
