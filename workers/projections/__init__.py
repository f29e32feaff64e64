"""Random projections whose bits are a function of their coordinates: equal on every machine and for every batch."""
