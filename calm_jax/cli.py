"""The command line: parse, call, print. What a command does stands elsewhere."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import difflib
import io
import sys
import typing
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

import calm_jax
from calm_jax import decode_command
from calm_jax.benchmark import names
from calm_jax.config import Experiment
from calm_jax.errors import CalmError, ConfigError
from calm_jax.report import selection


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
    parser, commands = _parser()
    _check_command(arguments, commands)
    known, rest = parser.parse_known_args(arguments)
    if rest and known.command != "pretrain":
        flags = [s for a in commands[known.command]._actions for s in a.option_strings]
        raise ConfigError(
            f"unknown argument {rest[0]!r}",
            where=f"calm-jax {known.command}",
            remedy=_nearest(rest[0], flags, f"calm-jax {known.command} --help"),
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

    def command(name: str, call: Any, text: str, **options: Any) -> argparse.ArgumentParser:
        added = sub.add_parser(name, help=text, description=text, allow_abbrev=False, **options)
        added.set_defaults(call=call)
        return added

    p = command("info", _info, "describe recordings: neurons, frames, behaviour, missing data")
    p.add_argument("paths", nargs="+", type=Path, metavar="PATH", help="file, folder or address")
    p.add_argument("--json", action="store_true", help="print JSON")
    p.add_argument(
        "--full", action="store_true", help="read all traces of large files too, not headers alone"
    )
    _reading(p)

    p = command("data", _data, "build a data set from its recordings, or simulate it")
    p.add_argument("name", metavar="NAME", help="a builder in data/, such as interchange")
    p.add_argument("--source", type=Path, help="folder or file with the recordings")
    p.add_argument("--store", type=Path, default=Path("datasets"), help="default: datasets")
    p.add_argument("--rate", type=float, help="resample every recording to this rate (Hz)")
    p.add_argument("--workers", type=_count, help="recordings read at a time; default: 1 or 2")
    p.add_argument(
        "--skip-unreadable", action="store_true", help="leave out recordings that cannot be read"
    )
    _reading(p)

    p = command(
        "pretrain", _pretrain, "run an experiment from recordings to report", add_help=False
    )
    p.add_argument("experiment", metavar="EXP", nargs="?", help="a name in experiments/, or a file")
    p.add_argument("--run", type=Path, help="run folder; default: runs/<experiment>")
    p.add_argument("-h", "--help", action="store_true")

    p = command("forecast", _forecast, "forecast a recording with a trained run")
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("file", type=Path, metavar="FILE", help="recording")
    p.add_argument("--context", type=_count, help="frames given; default: as in the experiment")
    p.add_argument("--horizon", type=_count, help="frames forecast; default: as in the experiment")
    p.add_argument("--origin", type=int, help="first forecast frame; default: end of the recording")
    p.add_argument("--samples", type=_trajectories, default=0, help="trajectories for quantiles")
    p.add_argument("--out", type=Path, help="file to write (.npz)")
    p.add_argument("--nwb", type=Path, help="copy of FILE (NWB 2) to write with the forecast in it")
    _reading(p)

    p = command("evaluate", _evaluate, "score a run beside its baselines")
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    p.add_argument("--data", type=Path, help="other recordings; default: those of the run")
    p.add_argument("--json", type=Path, dest="out", help="write the rows to this file")
    _reading(p)

    decode_command.add(command("decode", decode_command.call, decode_command.TEXT), _reading)

    p = command("benchmark", _benchmark, "compare forecasters fairly: same windows, same time")
    p.add_argument("what", metavar="WHAT", help="forecast")
    p.add_argument("--data", help="recordings, or a data set of data/; default: the simulation")
    p.add_argument("--source", help="folder or file that a data set is built from")
    p.add_argument("--store", help="where data sets are kept; default: datasets")
    p.add_argument("--rate", type=float, help="resample every recording to this rate (Hz)")
    p.add_argument("--protocol", choices=("A", "B"), default="B", help="default: B")
    p.add_argument(
        "--methods",
        default="all",
        help=f"comma-separated, of {', '.join((*names.SETS, *names.SETS['all']))}, or a .py file "
        "with a method; default: all",
    )
    p.add_argument(
        "--budget-seconds", type=_seconds, default=600.0, help="per method and seed; default: 600"
    )
    p.add_argument("--seeds", type=_count, default=3, help="default: 3")
    p.add_argument("--experiment", default="calm_base", metavar="EXP", help="default: calm_base")
    p.add_argument("--run", type=Path, action="append", default=[], help="a finished run; repeat")
    p.add_argument("--json", type=Path, dest="out", required=True, help="the rows are written here")
    p.add_argument("--markdown", type=Path, metavar="OUT", help="write the table to this file")
    p.add_argument("--figure", type=Path, metavar="OUT", help="write the figure (.png and .svg)")
    _reading(p)

    p = command("select", lambda known, _: selection.run(known), "find the predictable neurons")
    selection.add_arguments(p)
    _reading(p)

    p = command("report", _report, "write report.html and the figures of a run")
    p.add_argument("run", type=Path, metavar="RUN", help="run folder")
    return parser, dict(sub.choices)


def _reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--read",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an option of the format's reader, such as series=DfOverF; may be repeated",
    )


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not a positive number")
    return value


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"{text} is not a number of seconds")
    return value


def _trajectories(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is a negative number of trajectories")
    return value


def _check_command(arguments: list[str], commands: dict[str, Any]) -> None:
    if not arguments:
        raise ConfigError("no command given", where="calm-jax", expected=", ".join(commands))
    word = arguments[0]
    if not word.startswith("-") and word not in commands:
        raise ConfigError(
            f"unknown command {word!r}",
            where="calm-jax",
            expected=", ".join(commands),
            remedy=_nearest(word, commands, "calm-jax --help"),
        )


def _nearest(word: str, known: Any, otherwise: str) -> str:
    near = difflib.get_close_matches(word.split("=")[0], list(known), 1)
    return f"Did you mean {near[0]}?" if near else f"See `{otherwise}`."


# Commands; each imports what it needs, so that --help answers at once


def _start_jax() -> None:
    from calm_jax import compilation
    from calm_jax.training.mesh import join_processes

    join_processes()
    compilation.enable()


def _info(known: argparse.Namespace, rest: list[str]) -> int | None:
    from calm_jax.recordings.info import print_info

    return print_info(known.paths, known.json, options=known.read, full=known.full)


def _data(known: argparse.Namespace, rest: list[str]) -> None:
    from calm_jax import config
    from calm_jax.recordings.build import build

    source = None if known.source is None else str(known.source)
    data = config.Data(
        name=known.name,
        source=source,
        store=str(known.store),
        read=tuple(known.read),
        rate=known.rate,
    )
    print(build(data, workers=known.workers, skip_unreadable=known.skip_unreadable))


def _pretrain(known: argparse.Namespace, rest: list[str]) -> None:
    from calm_jax import experiments_loader

    if known.experiment is None and rest and not rest[0].startswith("-"):
        known.experiment = rest.pop(0)  # argparse misses it behind a flag
    if known.experiment is None:
        if known.help:
            print("usage: calm-jax pretrain EXP [--run DIR] [--FIELD VALUE ...]\n")
            print("Runs an experiment from recordings to report; again, it continues.")
            print("`calm-jax pretrain EXP --help` lists the fields.\n")
            print("experiments:", ", ".join(experiments_loader.names()))
            return
        listed = ", ".join(experiments_loader.names()) or "a path to a .py file"
        raise ConfigError("no experiment named", where="calm-jax pretrain", expected=listed)
    experiment = experiments_loader.load_experiment(known.experiment)
    experiment = override(experiment, [*rest, *(["--help"] if known.help else [])])
    from calm_jax import compilation
    from calm_jax.allocator import prefer_large_pages

    prefer_large_pages()  # before jax starts its threads
    compilation.prepare(experiment.compilation)
    _start_jax()
    from calm_jax import pipeline

    pipeline.pretrain(experiment, known.run or Path("runs") / experiment.name)


def _forecast(known: argparse.Namespace, rest: list[str]) -> None:
    written = [x for x in (known.out, known.nwb) if x is not None]
    if not written:
        raise ConfigError(
            "no file to write", where="calm-jax forecast", expected="--out FILE.npz, --nwb FILE.nwb"
        )
    _start_jax()
    from calm_jax import pipeline

    _, notes = pipeline.forecast_file(
        known.run,
        known.file,
        context=known.context,
        horizon=known.horizon,
        origin=known.origin,
        samples=known.samples,
        options=tuple(known.read),
        out=known.out,
        nwb=known.nwb,
    )
    for note in notes:
        print(f"note: {note}", file=sys.stderr)
    print(f"wrote {' and '.join(map(str, written))}", file=sys.stderr)


def _evaluate(known: argparse.Namespace, rest: list[str]) -> None:
    if known.read and known.data is None:
        raise ConfigError(
            "--read belongs to recordings named by --data",
            where="calm-jax evaluate",
            remedy="Those of the run are read as in its experiment.",
        )
    _start_jax()
    from calm_jax import pipeline

    pipeline.evaluate_run(known.run, data=known.data, options=known.read, out=known.out)


def _benchmark(known: argparse.Namespace, rest: list[str]) -> None:
    if known.what != "forecast":
        raise ConfigError(
            f"unknown benchmark {known.what!r}",
            where="calm-jax benchmark",
            expected="forecast",
            remedy=_nearest(known.what, ["forecast"], "calm-jax benchmark --help"),
        )
    from calm_jax.benchmark import command

    command.forecast(
        known.data,
        known.out,
        protocol=known.protocol,
        names=known.methods,
        budget_seconds=known.budget_seconds,
        seeds=known.seeds,
        experiment=known.experiment,
        runs=known.run,
        source=known.source,
        store=known.store,
        read=known.read,
        rate=known.rate,
        markdown=known.markdown,
        figure=known.figure,
    )


def _report(known: argparse.Namespace, rest: list[str]) -> None:
    from calm_jax import pipeline

    pipeline.write_report(known.run)


# Typed flags for every field of an experiment


def override(experiment: Experiment, arguments: Sequence[str]) -> Experiment:
    """The experiment with fields changed by flags such as `--transformer.layers 2`.

    Raises:
      ConfigError: for an unknown field (with the nearest) or a value of the wrong type.
    """
    if not arguments:
        return experiment
    flags = field_flags(Experiment)
    for word in arguments:
        name = word.split("=")[0].replace("_", "-")
        if word.startswith("--") and word != "--help" and name not in flags:
            raise ConfigError(
                f"unknown field {word.split('=')[0]}",
                where="calm-jax pretrain",
                remedy=_nearest(name, flags, "calm-jax pretrain EXP --help"),
            )
    import tyro

    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(
                Experiment,
                args=list(arguments),
                default=experiment,
                prog="calm-jax pretrain EXP",
                description="Runs an experiment from recordings to report; again, it continues. "
                "--run DIR names the run folder.",
                config=(tyro.conf.FlagConversionOff,),
            )
    except SystemExit as e:
        if not e.code:
            raise
        raise ConfigError(
            _first_part(said.getvalue()),
            where="calm-jax pretrain",
            remedy="See `calm-jax pretrain EXP --help`.",
        ) from None


def field_flags(cls: type, prefix: str = "--") -> list[str]:
    """All flags of a dataclass tree: `--seed`, `--data.name`, ..."""
    hints = typing.get_type_hints(cls)
    out = []
    for field in dataclasses.fields(cls):
        name = prefix + field.name.replace("_", "-")
        if dataclasses.is_dataclass(hints[field.name]):
            out += field_flags(hints[field.name], name + ".")
        else:
            out.append(name)
    return out


def _first_part(text: str) -> str:
    """The message in the box that tyro draws, as one line."""
    lines = []
    for line in text.splitlines():
        inner = line.strip("│ ")
        if inner.startswith(("╭", "╰")):
            continue
        if inner.startswith("──"):
            break
        lines.append(inner)
    return " ".join(lines).rstrip(".") or "wrong arguments"
