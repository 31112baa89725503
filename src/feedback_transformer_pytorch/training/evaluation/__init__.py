"""How well a model does: bits per byte of a text, beside those of xz, and right labels of sequences or a stream."""
