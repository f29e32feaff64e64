"""What kernels a run computes: one section per kind, and the union of them all in :mod:`ntkpipe.configs.kernels.union`."""
