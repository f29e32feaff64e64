"""Expectations of products of activations over two correlated normal variables, one file per family of activations."""
