"""Training by truncated backpropagation through time, with the memory carried from update to update."""
