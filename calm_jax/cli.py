"""The command line: parse, call, print. What a command does stands elsewhere."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

import calm_jax
from calm_jax import commands
from calm_jax.commands.flags import nearest
from calm_jax.errors import CalmError, ConfigError


class _Parser(argparse.ArgumentParser):
    """Errors in one line, like all others, with the nearest flag or command."""

    def error(self, message: str) -> NoReturn:
        raise ConfigError(message, where=self.prog, remedy=f"See `{self.prog} --help`.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status (0, 2 for an error of the user's, 130)."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(arguments) or 0
    except CalmError as e:
        print(f"error: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of a pipe has left, as in `calm-jax info ... | head`
        sys.stderr.close()
        return 141


def _main(arguments: list[str]) -> int | None:
    parser, added = _parser()
    _check_command(arguments, added)
    known, rest = parser.parse_known_args(arguments)
    known.arguments = arguments  # for a command that starts itself again
    if rest and known.command != "pretrain":
        flags = [s for a in added[known.command]._actions for s in a.option_strings]
        raise ConfigError(
            f"unknown argument {rest[0]!r}",
            where=f"calm-jax {known.command}",
            remedy=nearest(rest[0], flags, f"calm-jax {known.command} --help"),
        )
    return known.call(known, rest)


def _parser() -> tuple[_Parser, dict[str, argparse.ArgumentParser]]:
    parser = _Parser(
        prog="calm-jax",
        description="A foundation model of calcium-imaging population dynamics.",
        epilog="`calm-jax COMMAND --help` describes a command.",
    )
    parser.add_argument("--version", action="version", version=f"calm-jax {calm_jax.__version__}")
    sub = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, module in commands.modules().items():
        own_help = name == "pretrain"  # it lists the fields of the experiment
        added = sub.add_parser(
            name,
            help=module.TEXT,
            description=module.TEXT,
            allow_abbrev=False,
            add_help=not own_help,
        )
        added.set_defaults(call=module.call)
        module.add(added)
    return parser, dict(sub.choices)


def _check_command(arguments: list[str], known: dict[str, Any]) -> None:
    if not arguments:
        raise ConfigError("no command given", where="calm-jax", expected=", ".join(known))
    word = arguments[0]
    if not word.startswith("-") and word not in known:
        raise ConfigError(
            f"unknown command {word!r}",
            where="calm-jax",
            expected=", ".join(known),
            remedy=nearest(word, known, "calm-jax --help"),
        )
