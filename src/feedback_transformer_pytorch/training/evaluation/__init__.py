"""Bits per byte: of the model on any text and on the held-out text, and of xz."""
