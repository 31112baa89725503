"""The command line: options from dataclasses; errors of the user as one line."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import importlib.metadata
import io
import logging
import os
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from .errors import InputError, MissingExtraError
from .training.earlier import completed, is_complete, memory_norm_of, renamed
from .training.options import (
    EvalOptions,
    ExportOptions,
    GenerateOptions,
    InspectOptions,
    LmEvalOptions,
    PlotOptions,
    TokenizerOptions,
    TrainOptions,
    preset_file,
)
from .training.schema import Options, flag

PROGRAM = "feedback-transformer"
_OLD_FLAGS = {  # of older versions, in the words of today
    "--norm-memory": f"--memory-norm={memory_norm_of(True)}",
    "--no-norm-memory": f"--memory-norm={memory_norm_of(False)}",
}
# Options that a configuration file may give as one word.
_LISTS = {field.name for field in dataclasses.fields(TrainOptions) if field.default_factory is list}
USER_ERROR = 2  # exit code
INTERRUPTED = 130  # exit code: 128 + SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code: 0, 2 after bad input, 128 + n after signal n."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a character that the terminal lacks must not end the program
    _show_log()
    arguments = sys.argv[1:] if arguments is None else list(arguments)
    try:
        return _run(arguments)
    except BrokenPipeError:
        # The reader closed the pipe, as `head` does. Python's flush at exit must not raise the error again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(f"{PROGRAM}: interrupted", file=sys.stderr)
        return INTERRUPTED
    except (InputError, MissingExtraError, argparse.ArgumentError, OSError) as error:
        if os.environ.get("RANK", "0") == "0":  # several processes fail in the same way, so only the first reports
            print(f"{PROGRAM}: {_one_line(error)}", file=sys.stderr)
        return USER_ERROR
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        print(f"{PROGRAM}: out of memory{_smaller(arguments)}", file=sys.stderr)
        return USER_ERROR


def _show_log() -> None:
    """Shows on standard error what the package logs, from INFO on: for instance that there is no C++ compiler."""
    logging.getLogger(__package__).setLevel(logging.INFO)
    if logging.lastResort is not None:
        logging.lastResort.setLevel(logging.INFO)


def train(options: TrainOptions) -> int:
    """Trains a model; the exit code says whether a signal ended it."""
    from .training.loop import train

    outcome = train(options)
    return 0 if outcome.stopped_by is None else 128 + outcome.stopped_by


def evaluate(options: EvalOptions) -> int:
    """Prints how well a model does on a text or on labels."""
    from .training.evaluate import evaluate_run

    print(evaluate_run(options))
    return 0


def generate(options: GenerateOptions) -> int:
    """Prints the prompt and its continuation token by token."""
    from .training.commands import write_text
    from .training.reporting.progress import printable

    shown = printable if sys.stdout.isatty() else str
    for text in write_text(options):
        print(shown(text), end="", flush=True)
    print()
    return 0


def plot(options: PlotOptions) -> int:
    """Plots several runs."""
    from .training.commands import draw_runs

    draw_runs(options)
    print(options.out)
    return 0


def tokenizer(options: TokenizerOptions) -> int:
    """Trains a tokenizer and prints the size of its vocabulary."""
    from .training.commands import make_tokenizer

    print(f"{options.out}: {make_tokenizer(options):,} tokens")
    return 0


def export(options: ExportOptions) -> int:
    """Writes a model for transformers."""
    from .hf import export_run

    export_run(options.run, options.to)
    print(options.to)
    return 0


def lm_eval(options: LmEvalOptions) -> int:
    """Prints how well a model does in tasks of lm-evaluation-harness."""
    os.environ["HF_HUB_OFFLINE"] = "1"  # read when the libraries of Hugging Face are imported
    from .hf.harness import evaluate_tasks

    print(evaluate_tasks(options))
    return 0


def inspect(options: InspectOptions) -> int:
    """Writes plots and a page of what a model does with a passage."""
    from .training.inspection.command import inspect_run

    inspect_run(options)
    print(options.out)
    return 0


COMMANDS: dict[str, tuple[type[Options], Callable[[Any], int], str]] = {
    "train": (TrainOptions, train, "train a model on text or labels"),
    "eval": (EvalOptions, evaluate, "measure a model: bits per byte of text, accuracy of labels"),
    "generate": (GenerateOptions, generate, "continue a prompt with a model"),
    "plot": (PlotOptions, plot, "plot several runs"),
    "inspect": (InspectOptions, inspect, "look at what each head of a model reads, and what its memory stores"),
    "tokenizer": (TokenizerOptions, tokenizer, "train a tokenizer on text"),
    "export": (ExportOptions, export, "write a model for Hugging Face's transformers"),
    "lm-eval": (LmEvalOptions, lm_eval, "measure a model in tasks of lm-evaluation-harness"),
}


def _run(arguments: list[str]) -> int:
    if arguments[:1] == ["--print-completion"]:
        return _print_completion(*arguments[1:2] or [""])
    values = _parser().parse_args(_settings_first([_hyphenated(argument) for argument in arguments]))
    options, command, _ = COMMANDS[values.command]
    chosen = values[values.command].as_dict()
    chosen.pop("config", None)
    return command(options.from_dict(chosen))


def _parser() -> Any:
    from .parser import Command, make_parser

    return make_parser(PROGRAM, _version(), {name: Command(*command) for name, command in COMMANDS.items()})


def _print_completion(shell: str) -> int:
    """Prints what a shell needs to complete commands and options."""
    try:
        import shtab
    except ImportError as error:
        raise MissingExtraError("shtab", "completion") from error
    if shell not in shtab.SUPPORTED_SHELLS:
        raise InputError(f"--print-completion is {shell!r}; it must be {' or '.join(shtab.SUPPORTED_SHELLS)}")
    from jsonargparse import set_parsing_settings

    set_parsing_settings(add_print_completion_argument=True)
    with contextlib.suppress(SystemExit):
        _parser().parse_args([f"--print_completion=shtab-{shell}"])
    return 0


def _settings_first(arguments: list[str]) -> list[str]:
    """Moves the preset's file and then the configuration files to the front, so that the other arguments override them.

    In jsonargparse later arguments override earlier ones, and there are no presets. A configuration file may also name
    a preset.
    """
    if arguments[:1] != ["train"]:
        return arguments
    early = argparse.ArgumentParser(prog=f"{PROGRAM} train", add_help=False, allow_abbrev=False, exit_on_error=False)
    early.add_argument("--preset")
    early.add_argument("--config", action="append", default=[])
    early.add_argument("--resume", action="store_true")
    early.add_argument("--out")
    settings, rest = early.parse_known_args([_OLD_FLAGS.get(argument, argument) for argument in arguments[1:]])
    own, first = None, []
    if settings.out is not None:
        first.append(f"--out={settings.out}")
        path = Path(settings.out) / "config.yaml"
        if settings.resume and path.is_file():
            _check_run(settings.out)
            own = str(path)
            settings.config.insert(0, own)
    if settings.resume:
        first.append("--resume")
    contents = [_content(config) for config in settings.config]
    presets = [settings.preset, *(values.get("preset") for values in reversed(contents))]
    preset = next(filter(None, presets), None)
    named = [f"--config={preset_file(preset)}", "--preset", preset] if preset else []
    for config, values in zip(settings.config, contents, strict=True):
        named.append(f"--config={_in_words_of_today(config, values, is_whole=config == own or is_complete(values))}")
    return ["train", *named, *first, *rest]


def _in_words_of_today(config: str, values: dict[str, Any], *, is_whole: bool) -> str:
    """A configuration file, or what it should say instead if an older version wrote it; jsonargparse takes both."""
    try:
        today = completed(values) if is_whole else renamed(values)
    except InputError as error:
        raise InputError(f"{config}: {error}") from error
    today |= {name: [value] for name, value in today.items() if name in _LISTS and isinstance(value, str)}
    if today == values:
        return config
    text: str = _yaml().safe_dump(today, sort_keys=False)
    return text


def _check_run(path: str) -> None:
    """Reports what is wrong with the configuration of a run in clearer words than jsonargparse."""
    from .training.saving.run import Run

    Run.open(path)


def _content(config: str) -> dict[str, Any]:
    """The options in a configuration file; {} if there is no such file or it has none, which jsonargparse reports.

    Raises:
        InputError: it is not YAML, which jsonargparse reports without its name.
    """
    with contextlib.suppress(OSError):
        try:
            values = _yaml().safe_load(Path(config).read_text(encoding="utf-8"))
        except (_yaml().YAMLError, UnicodeError, ValueError, RecursionError) as error:
            raise InputError(f"{config} is not YAML ({error}); give a YAML file of options") from error
        return values if isinstance(values, dict) else {}
    return {}


def _yaml() -> ModuleType:
    try:
        import yaml
    except ImportError as error:
        raise MissingExtraError("pyyaml", "train") from error
    return yaml


def _hyphenated(argument: str) -> str:
    name, equals, value = argument.partition("=")
    return name.replace("_", "-") + equals + value if name.startswith("--") else argument


def _is_out_of_memory(error: Exception) -> bool:
    # On a CPU, torch raises a RuntimeError with this text.
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def _smaller(arguments: Sequence[str]) -> str:
    """What a command can do to need less memory."""
    remedies = {"train": "--batch-size, --block-len or model", "lm-eval": "--batch-size"}
    remedy = remedies.get(arguments[0] if arguments else "")
    return "" if remedy is None else f"; give a smaller {remedy}"


def _one_line(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return _reworded(" ".join(str(error).split()))


def _reworded(text: str) -> str:
    """Replaces parser keys and Python types in messages of jsonargparse by options and values."""
    text = re.sub(r'^Parser key "(\w+)":', lambda key: f"{flag(key[1])}:", text)
    text = re.sub(r'("command" to be one of) \{.*?\}', rf"\1 {{{','.join(COMMANDS)}}}", text)  # it names but a few
    text = re.sub(rf"(?<![\w/-])({'|'.join(COMMANDS)})\.(\w+)", lambda key: _as_given(key[1], key[2]) or key[0], text)
    text = re.sub(r"Does not validate .* Subtypes: \[(.*?)\] .* Given value: (.*)", r"Expected \1. Got value: \2", text)
    text = re.sub(r"(?:a )?<class '(\w+)'>", r"\1", text)
    return re.sub(r"(?:a )?typing\.Literal\[(.*?)\]", r"one of \1", text).replace(", NoneType", " or null")


def _as_given(command: str, name: str) -> str | None:
    """How an option of a command is given; None if it has none of that name."""
    info = COMMANDS[command][0].infos().get(name)
    return None if info is None else name.upper() if info.positional else flag(name)


def _version() -> str:
    try:
        return importlib.metadata.version("feedback-transformer-pytorch")
    except importlib.metadata.PackageNotFoundError:
        return "(not installed)"


if __name__ == "__main__":
    sys.exit(main())
