"""The commands besides `train` and `eval`: generate text, plot runs, train a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch

from ..data import train_bpe
from ..errors import InputError
from ..files import write_atomically
from ..generation import generate
from .models.architectures import default_device
from .options import GenerateOptions, PlotOptions, TokenizerOptions
from .reporting.plots import comparison_png
from .saving.run import Run


def write_text(options: GenerateOptions) -> Iterator[str]:
    """Yields the prompt, then its continuation token by token.

    Raises:
        InputError: the RUN or an option cannot be used.
    """
    run, device = Run.open(options.run), default_device()
    tokenizer = run.tokenizer()
    model = run.load_model(tokenizer.num_tokens).to(device)
    generator = torch.Generator(device)
    if options.seed is None:
        generator.seed()
    else:
        generator.manual_seed(options.seed)
    prompt = tokenizer.encode(options.prompt).astype(np.int64)
    decoder = tokenizer.stream_decoder()
    for token in prompt:
        yield decoder.push(token)
    for new in generate(
        model,
        torch.from_numpy(prompt)[None].to(device),
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        generator=generator,
    ):
        yield decoder.push(new)
    yield decoder.finish()


def draw_runs(options: PlotOptions) -> None:
    """Plots several runs in one PNG file.

    Raises:
        InputError: a RUN cannot be used, the runs have different metrics, or the file cannot be written.
    """
    runs = [Run.open(path) for path in options.runs]
    other = next((run for run in runs if run.metric != runs[0].metric), None)
    if other is not None:
        raise InputError(
            f"{runs[0].path} has {runs[0].metric.label} and {other.path} has {other.metric.label}; "
            "give runs with the same metric"
        )
    curves = [(run.path.name, run.metrics()) for run in runs]
    write_atomically(Path(options.out), comparison_png(curves, x=options.x, metric=runs[0].metric))


def make_tokenizer(options: TokenizerOptions) -> int:
    """Trains a byte-pair tokenizer on text and writes it as a tokenizer.json; returns the size of the vocabulary.

    Raises:
        InputError: the text cannot be used, or the file exists or cannot be written.
        MissingExtraError: `tokenizers` is not installed.
    """
    path = Path(options.out)
    if path.exists():
        raise InputError(f"--out is {path}, which exists already; choose another file")
    tokenizer = train_bpe(options.files, options.vocab_size, text_field=options.text_field)
    write_atomically(path, tokenizer.to_json().encode())
    return tokenizer.num_tokens
