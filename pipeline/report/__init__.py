"""The report of a run: one HTML file that a browser shows without a network."""
