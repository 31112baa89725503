"""The model that the options name, and the weights that it starts from."""
