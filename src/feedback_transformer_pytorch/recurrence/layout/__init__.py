"""How a walk is laid out: segments, the memory buffer, what is saved for the backward pass, and in which types."""
