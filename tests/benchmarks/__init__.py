"""Benchmarks: scripts that are run by hand, and the modules they share."""
