"""What the user asks for: configuration sections, their validation, and the error tree. Needs no torch, ray or zarr."""
