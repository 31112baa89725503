"""One update of the weights: the optimizer, and the memories that go from update to update."""
