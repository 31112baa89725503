"""Labelled sequences from JSON lines, and the words that they are made of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InputError
from ..files import is_utf8
from ..tasks import IGNORE, Labelled
from .documents import json_lines

_LONGEST_NUMBER = 100  # digits; Python refuses to read thousands of them


class Vocabulary:
    """The words of tokens and labels; the place of a word is its number.

    Raises:
        InputError: a word is given twice, or there is none.
    """

    def __init__(self, words: Sequence[str]) -> None:
        self.words = tuple(words)
        self._numbers = {word: number for number, word in enumerate(self.words)}
        if len(self._numbers) != len(self.words) or not self.words:
            raise InputError(f"a vocabulary has {len(self.words)} words; give one or more, each of them once")

    @classmethod
    def of(cls, words: Iterable[str]) -> Vocabulary:
        """The vocabulary of these words: whole numbers first, in order, then the others, sorted."""
        return cls(
            sorted(set(words), key=lambda word: (not _is_number(word), int(word) if _is_number(word) else 0, word))
        )

    @property
    def num_tokens(self) -> int:
        """Number of words, V."""
        return len(self.words)

    @property
    def fingerprint(self) -> str:
        """SHA-256 of the words, in hexadecimal."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()

    def numbers(self, words: Sequence[str | None], where: str) -> npt.NDArray[np.int64]:
        """(T,), the number of each word; IGNORE for None.

        Raises:
            InputError: a word is not in the vocabulary; `where` says in which line it stands.
        """
        unknown = next((word for word in words if word is not None and word not in self._numbers), None)
        if unknown is not None:
            some = ", ".join(self.words[:10]) + (", ..." if len(self.words) > 10 else "")
            raise InputError(f"{where} has {unknown!r}, which the model was not trained with; its words are {some}")
        return np.array([IGNORE if word is None else self._numbers[word] for word in words], np.int64)

    def to_json(self) -> str:
        """The content of a vocabulary.json."""
        return json.dumps(self.words, ensure_ascii=False, indent=0) + "\n"

    @classmethod
    def from_file(cls, path: Path) -> Vocabulary:
        """The vocabulary that `to_json` wrote.

        Raises:
            InputError: the file is damaged.
        """
        try:
            words = json.loads(path.read_bytes())
        except (OSError, ValueError, RecursionError) as error:
            raise InputError(f"{path} is not a vocabulary ({error}); restore it from a copy") from error
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise InputError(f"{path} is not a list of words; restore it from a copy")
        return cls(words)


class Line(NamedTuple):
    """A sequence as a file has it: equally many tokens and labels, None where a position is not counted."""

    tokens: list[str]
    labels: list[str | None]
    where: str

    def encode(self, vocabulary: Vocabulary) -> Labelled:
        """The sequence as numbers, (T,) each.

        Raises:
            InputError: a word is not in the vocabulary.
        """
        return Labelled(vocabulary.numbers(self.tokens, self.where), vocabulary.numbers(self.labels, self.where))


def read_lines(sources: Sequence[str]) -> list[Line]:
    """Read labelled sequences from JSON lines: each is {"tokens": [...], "labels": [...]}, equally long.

    Tokens are words or whole numbers; so are labels, and null where a position is not counted.

    Args:
        sources: files, compressed or not, globs, or - for standard input, as `read_pieces` takes them.

    Raises:
        InputError: a file cannot be read, or a line is not such an object.
    """
    lines = [_line(record, where) for record, where in json_lines(sources)]
    if not lines:
        raise InputError(f"{' '.join(sources)!r} has no line; give JSON lines with tokens and labels")
    return lines


def fingerprint(vocabulary: Vocabulary, *parts: Sequence[Labelled]) -> str:
    """SHA-256 of the labelled sequences of several parts, and of their vocabulary, in hexadecimal."""
    digest = hashlib.sha256(vocabulary.to_json().encode())
    for sequences in parts:
        digest.update(len(sequences).to_bytes(8, "little"))
        for tokens, labels in sequences:
            digest.update(len(tokens).to_bytes(8, "little"))
            for numbers in (tokens, labels):
                digest.update(np.ascontiguousarray(numbers, dtype="<i8").tobytes())
    return digest.hexdigest()


def check_labels(sequences: Iterable[Labelled], name: str) -> None:
    """Raises InputError if no position of the sequences in `name` has a label."""
    if not any((sequence.labels != IGNORE).any() for sequence in sequences):
        raise InputError(f"{name} has no label but null; give at least one sequence with a label")


def _line(record: dict[str, Any], where: str) -> Line:
    for name in ("tokens", "labels"):
        if not isinstance(record.get(name), list):
            found = ", ".join(map(repr, record)) or "none"
            raise InputError(
                f'{where} has no list as {name!r} (its fields: {found}); give {{"tokens": [...], "labels": [...]}}'
            )
    tokens, labels = record["tokens"], record["labels"]
    if len(tokens) != len(labels) or not tokens:
        raise InputError(
            f"{where} has {len(tokens)} tokens and {len(labels)} labels; give as many labels as tokens, one or more"
        )
    for word in tokens:
        _check_word(word, "token", where)
    for word in labels:
        if word is not None:
            _check_word(word, "label", where)
    return Line([str(word) for word in tokens], [None if word is None else str(word) for word in labels], where)


def _check_word(word: object, what: str, where: str) -> None:
    if type(word) not in (str, int):
        also = ", or null" if what == "label" else ""
        raise InputError(f"{where} has the {what} {word!r}; give a word or a whole number{also}")
    if isinstance(word, str) and not is_utf8(word):
        raise InputError(f"{where} has the {what} {word!r}, with half a surrogate pair; give a word in UTF-8")


def _is_number(word: str) -> bool:
    digits = word.removeprefix("-")
    return digits.isascii() and digits.isdigit() and len(digits) <= _LONGEST_NUMBER
