"""The commands `generate`, `plot` and `tokenizer`."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..data import Tokenizer, train_bpe
from ..errors import InputError
from ..files import check_can_be_written, write_atomically
from ..generation import (
    Continuation,
    ContinuationState,
    Model,
    beam_search,
    generate,
    load_state,
    round_weights,
    save_state,
)
from .models.architectures import default_device
from .options import GenerateOptions, PlotOptions, TokenizerOptions
from .reporting.plots import comparison_png
from .saving.run import Run
from .until_stop import UntilStop


def write_text(options: GenerateOptions) -> Iterator[str]:
    """Yields the prompt, then its continuation token by token; of a beam search, at once.

    Raises:
        InputError: the RUN, a file or an option cannot be used.
    """
    check_can_be_written("--save-state", options.save_state)
    run, device = Run.open(options.run), default_device()
    tokenizer = run.tokenizer()
    model = run.load_model(tokenizer.num_tokens).to(device)
    if options.weights is not None:
        model = round_weights(model, options.weights)
    state = None if options.load_state is None else load_state(options.load_state, model)
    decoder, until_stop, prompt = tokenizer.stream_decoder(), UntilStop(options.stop), None
    if options.prompt is not None or state is None:
        tokens = tokenizer.encode("\n" if options.prompt is None else options.prompt).astype(np.int64)
        for token in tokens:
            yield decoder.push(token)
        prompt = torch.from_numpy(tokens)[None].to(device)
    continuation = None if options.beams is not None else _sampled(options, model, prompt, state, device)
    for new in _likeliest(options, model, prompt, tokenizer) if continuation is None else continuation:
        yield until_stop.push(decoder.push(new))
        if until_stop.found:
            break
    yield until_stop.push(decoder.finish()) + until_stop.finish()
    if continuation is not None and options.save_state is not None:
        save_state(options.save_state, continuation.state, model)


def _sampled(
    options: GenerateOptions,
    model: Model,
    prompt: Tensor | None,
    state: ContinuationState | None,
    device: torch.device,
) -> Continuation:
    """The tokens that are drawn behind a prompt (1, n), a state, or both."""
    generator = None  # that of the state
    if options.seed is not None:
        generator = torch.Generator(device).manual_seed(options.seed)
    elif state is None:
        generator = torch.Generator(device)
        generator.seed()
    return generate(
        model,
        prompt,
        max_new_tokens=options.max_new_tokens,
        temperature=options.temperature,
        top_k=options.top_k,
        top_p=options.top_p,
        min_p=options.min_p,
        repetition_penalty=options.repetition_penalty,
        generator=generator,
        state=state,
    )


def _likeliest(options: GenerateOptions, model: Model, prompt: Tensor | None, tokenizer: Tokenizer) -> Tensor:
    """The tokens (n,) that a beam search finds behind a prompt (1, n)."""
    assert prompt is not None
    assert options.beams is not None
    stop = [tokenizer.encode(text).tolist() for text in options.stop]
    count, beams = options.max_new_tokens, options.beams
    return beam_search(model, prompt, max_new_tokens=count, beams=beams, stop=stop)[0][0].tokens


def draw_runs(options: PlotOptions) -> None:
    """Plots several runs in one PNG file.

    Raises:
        InputError: a RUN cannot be used, the runs have different metrics, or the file cannot be written.
    """
    check_can_be_written("--out", options.out)
    runs = [Run.open(path) for path in options.runs]
    other = next((run for run in runs if run.metric != runs[0].metric), None)
    if other is not None:
        raise InputError(
            f"{runs[0].path} has {runs[0].metric.label} and {other.path} has {other.metric.label}; "
            "give runs with the same metric"
        )
    curves = list(zip(_names([run.path for run in runs]), [run.metrics() for run in runs], strict=True))
    write_atomically(Path(options.out), comparison_png(curves, x=options.x, metric=runs[0].metric))


def _names(paths: Sequence[Path]) -> list[str]:
    """The last parts of each path, as few as tell it from the others."""
    found = []
    for path in paths:
        others = [other.resolve().parts for other in paths if other.resolve() != path.resolve()]
        parts = path.resolve().parts
        count = next(n for n in itertools.count(1) if all(other[-n:] != parts[-n:] for other in others))
        found.append(str(Path(*parts[-count:])))
    return found


def make_tokenizer(options: TokenizerOptions) -> int:
    """Trains a byte-pair tokenizer on text and writes it as a tokenizer.json; returns the size of the vocabulary.

    Raises:
        InputError: the text cannot be used, or the file exists or cannot be written.
        MissingExtraError: `tokenizers` is not installed.
    """
    path = Path(options.out)
    check_can_be_written("--out", options.out)
    if path.exists():
        raise InputError(f"--out is {path}, which exists already; choose another file")
    tokenizer = train_bpe(options.files, options.vocab_size, text_field=options.text_field)
    write_atomically(path, tokenizer.to_json().encode())
    return tokenizer.num_tokens
