"""Per-sample Jacobians: captured layer factors where possible, torch.func elsewhere, never a silent gap."""
