"""What training needs to know of the data."""

from __future__ import annotations

from typing import Protocol

from ...data import Blocks, Tokenizer, Vocabulary
from ..evaluation.validation import Validation
from ..objective import Objective
from ..saving.saver import Fingerprints
from ..updates.mastery import Mastery


class Dataset(Protocol):
    """The data of a run, and what follows from its kind."""

    @property
    def tokens(self) -> Tokenizer | Vocabulary:
        """What numbers the tokens; a RUN keeps it."""

    @property
    def blocks(self) -> Blocks:
        """The block of each update."""

    @property
    def curriculum(self) -> Mastery | None:
        """Lets the blocks grow; None if they do not, or by the number of the update."""

    @property
    def objective(self) -> Objective:
        """What the model is trained to predict."""

    @property
    def validation(self) -> Validation:
        """Measures the model on what is held out."""

    @property
    def fingerprints(self) -> Fingerprints:
        """Identify the data."""

    @property
    def summary(self) -> str:
        """A line for people."""
