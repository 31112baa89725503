"""What a user sees of a run: metrics, the terminal, plots and trackers."""
