"""What survives a crash: stores, arrays, receipts and locks. The only layer that knows zarr and fsspec."""
