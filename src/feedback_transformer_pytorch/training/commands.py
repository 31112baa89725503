"""What a trained model is asked to do: read a text, continue a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch

from ..data import ByteTokenizer, read_text, xz_bits_per_byte
from ..errors import MissingExtraError
from ..generation import generate
from .evaluate import bits_per_byte
from .options import EvalOptions, GenerateOptions
from .run import Run

try:
    from rich.console import Console
    from rich.progress import Progress
except ImportError as error:
    raise MissingExtraError("rich", "train") from error


@dataclass(frozen=True)
class Evaluation:
    """Bits per byte of a text of `num_bytes` bytes: of the model, and of `xz -9`."""

    bits_per_byte: float
    xz: float
    num_bytes: int

    def __str__(self) -> str:
        return f"{self.bits_per_byte:.4f} bits/byte over {self.num_bytes:,} bytes (xz -9: {self.xz:.4f})"


def evaluate_run(options: EvalOptions) -> Evaluation:
    """Reads a text from start to end with the memory carried all the way; what comes before it is a line break.

    Raises:
        InputError: the RUN or the text cannot be used.
    """
    run, tokenizer = Run.open(options.run), ByteTokenizer()
    text = read_text(options.files)
    model = run.load_model(tokenizer.num_tokens).to(_device())
    tokens = np.concatenate([tokenizer.encode("\n"), tokenizer.encode(text)])
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("reading", total=len(text))
        bits = bits_per_byte(
            model,
            tokens,
            tokenizer,
            block_len=run.options.block_len,
            after_block=lambda count: progress.advance(task, count),
        )
    return Evaluation(bits, xz_bits_per_byte(text), len(text))


def write_text(options: GenerateOptions) -> Iterator[str]:
    """Yields the prompt, then its continuation piece by piece.

    Raises:
        InputError: the RUN or an option cannot be used.
    """
    tokenizer, device = ByteTokenizer(), _device()
    model = Run.open(options.run).load_model(tokenizer.num_tokens).to(device)
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


def _device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
