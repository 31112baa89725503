"""What a run writes to the disk, and how it resumes from there."""

from .run import Run as Run
