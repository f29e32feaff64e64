"""How each kind of operation turns its input and the gradient at its output into gradients of its parameters."""
