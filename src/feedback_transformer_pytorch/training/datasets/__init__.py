"""What a run learns from: text, or labelled sequences and streams."""
