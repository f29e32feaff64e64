"""What a run may solve: one section per solver, told apart by its kind."""
