"""Symmetric matrices known by their products: dense, in stored tiles, or as inner products of features."""
