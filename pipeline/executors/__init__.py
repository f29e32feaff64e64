"""Where tasks run: behind one seam, in this process or on a Ray cluster."""
