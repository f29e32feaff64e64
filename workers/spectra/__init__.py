"""What kernel matrices are like: eigenpairs, traces of functions, determinants, and Gaussian processes."""
