"""Estimators that fit into scikit-learn."""
