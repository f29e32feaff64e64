"""One module per stage of a run: features, kernel, solve, analyze."""
