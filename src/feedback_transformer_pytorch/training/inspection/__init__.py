"""A look inside a trained model: what it reads and stores at each token of a passage, in plots and on a page."""
