"""The commands besides `train`: evaluate a model, generate text, plot runs, train a tokenizer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data import default_cache, tokenize, train_bpe
from ..errors import InputError, MissingExtraError
from ..files import write_atomically
from ..generation import generate
from .evaluation.bits_per_byte import bits_per_byte
from .evaluation.xz import xz_bits_per_byte
from .options import EvalOptions, GenerateOptions, PlotOptions, TokenizerOptions
from .reporting.plots import comparison_png
from .saving.run import Run

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise MissingExtraError("rich", "train") from error


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte of the model and of `xz -9` on a text of `num_bytes` bytes."""

    bits_per_byte: float
    xz: float
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.bits_per_byte:.4f} bits/byte over {self.num_bytes:,} bytes (xz -9: {self.xz:.4f})"


def evaluate_run(options: EvalOptions) -> Evaluation:
    """Measures a model on a text, carrying the memory from start to end. A line break is read before the text.

    Raises:
        InputError: the RUN or the text cannot be used.
    """
    run = Run.open(options.run)
    tokenizer = run.tokenizer()
    model = run.load_model(tokenizer.num_tokens, options.mem_len).to(_device())
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=None)
        text = tokenize(
            options.files,
            tokenizer,
            text_field=run.options.text_field,
            cache=default_cache() if run.options.cache is None else Path(run.options.cache),
            on_progress=lambda done, total: progress.update(task, completed=done, total=total),
        )
        before = tokenizer.encode("\n")
        resets = None
        if run.options.reset_documents:
            resets = np.zeros(len(before) + len(text.tokens), np.bool_)
            resets[len(before) + text.starts] = True
        progress.update(task, description="evaluating", completed=0, total=len(text.tokens))
        bits = bits_per_byte(
            model,
            np.concatenate([before, text.tokens]),
            tokenizer,
            block_len=run.options.block_len,
            lead=len(before),
            resets=resets,
            after_block=lambda count: progress.advance(task, count),
        )
    return Evaluation(bits, xz_bits_per_byte(tokenizer.decode_bytes(text.tokens)), text.num_bytes)


def write_text(options: GenerateOptions) -> Iterator[str]:
    """Yields the prompt, then its continuation token by token.

    Raises:
        InputError: the RUN or an option cannot be used.
    """
    run, device = Run.open(options.run), _device()
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
        InputError: a RUN cannot be used, or the file cannot be written.
    """
    runs = [Run.open(path) for path in options.runs]
    curves = [(run.path.name, run.metrics()) for run in runs]
    write_atomically(Path(options.out), comparison_png(curves, x=options.x))


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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
