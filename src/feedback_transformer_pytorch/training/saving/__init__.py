"""What a run writes to the disk, and how it resumes from there."""
