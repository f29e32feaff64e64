"""What needs a tensor: sources, Jacobians, projections, kernels, solvers, analyses. The only layer that knows torch."""
