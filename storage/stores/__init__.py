"""Where a run lives: small objects and one zarr store under one URL."""
