"""The options of `tokenizer`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ..schema import OptionInfo, Options


@dataclass(frozen=True, kw_only=True)
class TokenizerOptions(Options):
    """A byte-pair tokenizer, trained on text."""

    action: Annotated[Literal["train"], OptionInfo("train: train a tokenizer on text", positional=True)]
    files: Annotated[
        list[str],
        OptionInfo(
            "text to train on: text, .jsonl, .gz and .xz files, globs, saved datasets, or - for standard input",
            positional=True,
        ),
    ]
    out: Annotated[str, OptionInfo("the file to write, in Hugging Face's format")] = "tokenizer.json"
    vocab_size: Annotated[int, OptionInfo("largest number of tokens V", at_least=256)] = 8192
    text_field: Annotated[str, OptionInfo("field that holds the text in .jsonl files and saved datasets")] = "text"
