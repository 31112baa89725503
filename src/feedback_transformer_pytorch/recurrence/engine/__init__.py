"""The fast walk: what both directions share, the two directions, and their steps by operations of torch."""
