"""What training needs to know of the data."""

from __future__ import annotations

from dataclasses import dataclass

from ...data import Blocks, Tokenizer, Vocabulary
from ..evaluation.validation import Validation
from ..objective import Objective
from ..saving.saver import Fingerprints
from ..updates.mastery import Mastery


@dataclass(frozen=True)
class Dataset:
    """The data of a run, and what follows from its kind.

    Attributes:
        tokens: what numbers the tokens; a RUN keeps it.
        blocks: the block of each update.
        objective: what the model is trained to predict.
        validation: measures the model on what is held out.
        fingerprints: identify the data.
        summary: a line for people.
        curriculum: lets the blocks grow; None if they do not, or by the number of the update.
        command: a command that uses the weights.
    """

    tokens: Tokenizer | Vocabulary
    blocks: Blocks
    objective: Objective
    validation: Validation
    fingerprints: Fingerprints
    summary: str
    curriculum: Mastery | None = None
    command: str = "eval"
