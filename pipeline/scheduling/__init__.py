"""Who does what next: no processes, no clocks of its own, no Ray; a simulation runs through the same code as a cluster."""
