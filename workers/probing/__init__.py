"""Looking at a model and its data before a run: shapes, routes, memory, costs and fingerprints."""
