"""Per-sample gradients of one parameter, each in the form in which it is cheapest."""
