"""Kernel matrices as pictures: an overview of any size of matrix, tiles of it, and samples as images or texts."""
