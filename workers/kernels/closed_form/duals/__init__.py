"""Expectations of products of activations over two correlated normal variables, one file per family of activations.

Networks carry the angle of a pair from layer to layer (``base.py``); what mixes pairs knows covariances only
(``covariances.py``). The formulas are the same functions of broadcast tensors.
"""
