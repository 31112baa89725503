"""The tokens that are looked at: a part of a text, or of labelled data."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from ...data import Tokenizer, read_lines, read_pieces
from ...errors import InputError
from ...tasks import IGNORE, Labelled, SequenceTask, find_task
from ..datasets.labelled import TEST_SEED, joined, sequences_of
from ..options import InspectOptions
from ..saving.run import Run

TEXT_TOKENS = 256  # that are shown of a text or stream, unless the options say how many

Integers = npt.NDArray[np.int64]


class Passage(NamedTuple):
    """N tokens that a model reads with an empty memory, of which those from `first` on are shown.

    Attributes:
        tokens: (N,).
        targets: (N,), what is to be predicted at each token; IGNORE for nothing.
        first: the first token that is shown; `number` is its number in the text or data, from 1.
        predicts_next: whether a target is the next token, and not a label of the token itself.
        num_tokens: V.
        word: a token or target as text.
    """

    tokens: Integers
    targets: Integers
    first: int
    number: int
    predicts_next: bool
    num_tokens: int
    word: Callable[[int], str]


def passage_of(run: Run, options: InspectOptions) -> Passage:
    """What the options ask for, of the kind of data that the run was trained on.

    Raises:
        InputError: the text cannot be read, is too short, or has words that the model does not know.
    """
    return _labelled(run, options) if run.options.is_labelled else _text(run, options)


def _text(run: Run, options: InspectOptions) -> Passage:
    """A part of a text. Its first token is predicted from a line break, as in `eval`."""
    if options.text is None:
        raise InputError(f"--text is missing; {run.path} was trained on text: give a file, or - for standard input")
    tokenizer, count = run.tokenizer(), options.skip + (options.tokens or TEXT_TOKENS)
    start = tokenizer.encode("\n")
    parts, missing = [start], count
    for piece in read_pieces([options.text], text_field=run.options.text_field):
        parts.append(tokenizer.encode(piece.text)[:missing])
        missing -= len(parts[-1])
        if not missing:
            break
    _check_length(count - missing, options)
    tokens = np.concatenate(parts).astype(np.int64)
    targets = np.append(tokens[1:], IGNORE)
    first, number = len(start) + options.skip, options.skip + 1
    return Passage(tokens, targets, first, number, True, tokenizer.num_tokens, _word_of(tokenizer))


def _word_of(tokenizer: Tokenizer) -> Callable[[int], str]:
    def word(token: int) -> str:
        content = tokenizer.decode_bytes([token])
        try:
            return content.decode()
        except UnicodeDecodeError:  # a part of a character
            return "".join(chr(byte) if byte < 0x80 else f"\\x{byte:02x}" for byte in content)

    return word


def _labelled(run: Run, options: InspectOptions) -> Passage:
    """A part of a sequence or stream: of a file, or one of the run's task that training never sees."""
    vocabulary, task = run.vocabulary(), None if run.options.task is None else find_task(run.options.task)
    is_sequence = isinstance(task, SequenceTask) or run.options.labelled == "sequences"
    count = options.skip + (options.tokens or (run.options.block_len if is_sequence else TEXT_TOKENS))
    if options.text is not None:
        lines = [line.encode(vocabulary) for line in read_lines([options.text])]
        data = lines[0] if is_sequence else joined(lines)
    elif isinstance(task, SequenceTask):
        (data,) = sequences_of(task, 1, count, TEST_SEED)
    elif task is not None:
        data = task.stream("test")
    else:
        raise InputError(
            f"--text is missing; {run.path} was trained on files of labels: give such a file, or - for standard input"
        )
    tokens, targets = Labelled(data.tokens[:count], data.labels[:count])
    _check_length(len(tokens), options)
    word, number = vocabulary.words.__getitem__, options.skip + 1
    return Passage(tokens, targets, options.skip, number, False, vocabulary.num_tokens, word)


def _check_length(count: int, options: InspectOptions) -> None:
    if count <= options.skip:
        raise InputError(f"--skip is {options.skip}, but there are {count} tokens; skip fewer, or give a longer text")
