"""The parser of the command line, made of dataclasses of options."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple, get_type_hints

from .errors import MissingExtraError
from .training.options import TrainOptions
from .training.schema import Options, default_of, flag, is_required

try:
    from jsonargparse import ActionYesNo, ArgumentParser, DefaultHelpFormatter
except ImportError as error:
    raise MissingExtraError("jsonargparse", "train") from error


class Command(NamedTuple):
    """A command of the program.

    Attributes:
        run: takes the options and returns the exit code.
        help: its line in `--help`.
    """

    options: type[Options]
    run: Callable[[Any], int]
    help: str


def make_parser(program: str, version: str, commands: Mapping[str, Command]) -> Any:
    """The parser of all commands."""
    parser = ArgumentParser(
        prog=program,
        description="Train, measure and use Feedback Transformers.",
        epilog=f"`{program} --print-completion bash` (or zsh, tcsh) prints a script for completion.",
        formatter_class=_HelpFormatter,
        version=version,
        allow_abbrev=False,
        exit_on_error=False,
    )
    subcommands = parser.add_subcommands(dest="command")
    for name, command in commands.items():
        subparser = ArgumentParser(
            description=f"{command.help[0].upper()}{command.help[1:]}.",
            usage=_usage(f"{program} {name}", command.options),
            formatter_class=_HelpFormatter,
            print_config="--print-config",
            allow_abbrev=False,
            exit_on_error=False,
        )
        if command.options is TrainOptions:
            subparser.add_argument(
                "--config", action="config", help="YAML file of options; the command line overrides it"
            )
        _add_options(subparser, command.options)
        subcommands.add_subcommand(name, subparser, help=command.help)
    return parser


class _HelpFormatter(DefaultHelpFormatter):
    """Shows defaults, and no Python types."""

    def _get_help_string(self, action: argparse.Action) -> str:
        text = action.help or ""
        if action.required and action.option_strings:
            return f"{text} (required)"
        shows_default = action.option_strings and action.default not in (None, [], argparse.SUPPRESS)
        return f"{text} (default: {_in_words(action.default)})" if shows_default else text


def _in_words(default: Any) -> str:
    return {True: "on", False: "off"}[default] if isinstance(default, bool) else str(default)


def _usage(name: str, options: type[Options]) -> str:
    infos = options.infos()
    parts = [name]
    for field in dataclasses.fields(options):
        takes_many = get_type_hints(options)[field.name] == list[str]
        if infos[field.name].positional:
            words = f"{field.name.upper()}{' ...' if takes_many else ''}"
            parts.append(words if is_required(field) else f"[{words}]")
        elif is_required(field):
            parts.append(f"{flag(field.name)} {field.name.upper()}")
    return " ".join([*parts, "[options]"])


def _add_options(parser: Any, options: type[Options]) -> None:
    hints, infos = get_type_hints(options), options.infos()
    group = parser
    for field in dataclasses.fields(options):
        if infos[field.name].begins is not None:
            group = parser.add_argument_group(infos[field.name].begins)
        name, settings = field.name, {"type": hints[field.name], "help": infos[field.name].help}
        if not infos[name].positional:
            settings |= {"required": True} if is_required(field) else {"default": default_of(field)}
            if hints[name] == list[str]:
                settings |= {"type": str, "nargs": "+"}
            elif hints[name] is bool:
                settings = {"help": settings["help"], "default": field.default}
                settings["action"] = ActionYesNo(yes_prefix="", no_prefix="no-")
            name = flag(name)
        elif hints[name] == list[str]:
            # With a default, argparse would let an empty command line override the configuration file.
            count = {"nargs": "+"} if is_required(field) else {"nargs": "*", "default": argparse.SUPPRESS}
            settings |= {"type": str, **count}
        group.add_argument(name, **settings)
