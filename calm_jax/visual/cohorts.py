"""Which sessions pretrain and which are fine-tuned on; no animal is in both."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calm_jax import config
from calm_jax.errors import ConfigError, SplitError
from calm_jax.recordings import disjoint, selection
from calm_jax.visual.experiment import Diet


@dataclasses.dataclass(frozen=True)
class Source:
    """What is known of a session before anything is trained."""

    session: str
    animal: str
    container: str
    line: str
    predictable: bool


@dataclasses.dataclass(frozen=True)
class Cohorts:
    """Session ids of each part.

    Attributes:
      pretrain, finetune: who trains. scored: those of `finetune` on which experiments are
        compared: the unpredictable ones, where there are any.
      thresholds, medians: of the selection, by statistic and by line.
      predictable: lines at or below both thresholds.
    """

    pretrain: tuple[str, ...]
    finetune: tuple[str, ...]
    scored: tuple[str, ...]
    thresholds: Mapping[str, float]
    medians: Mapping[str, Mapping[str, float]]
    predictable: tuple[str, ...]


def make(store: Any, diet: Diet, split: config.Split, seed: int) -> Cohorts:
    """The cohorts of an experiment; thresholds from training frames alone.

    Args:
      store: all sessions. split: whose training part the statistics are of.
      seed: of the repetition: who is drawn for "mixed" and "random". The reserve does not
        depend on it, so that all repetitions and experiments are scored on the same cells.

    Raises:
      ConfigError: no session is left for a part. RecordingError: no cell lines.
      SplitError: pretraining and fine-tuning share an animal, container or cell.
    """
    cells, about = _read(store, split)
    fixed = {k: v for k, v in (("skewness", diet.skewness), ("kurtosis", diet.kurtosis))
             if v is not None}  # fmt: skip
    chosen = selection.select(cells, by="line", method=diet.method, fixed=fixed or None)
    kept = {str(n) for n, k in zip(chosen.names, chosen.kept) if k}
    sources = [dataclasses.replace(s, predictable=s.line in kept) for s in about]
    pretrain, finetune = divide(sources, diet, seed)
    scored = tuple(s.session for s in sources if s.session in finetune and not s.predictable)
    both = [np.array([bool(set(own) & set(part)) for own in cells.sessions])
            for part in (pretrain, finetune)]  # fmt: skip
    disjoint.check_disjoint(*(disjoint.origin(cells, rows) for rows in both))
    return Cohorts(
        pretrain=pretrain,
        finetune=finetune,
        scored=scored or finetune,
        thresholds={k: float(v) for k, v in chosen.thresholds.items()},
        medians={
            str(n): {k: float(chosen.values[k][j]) for k in selection.STATISTICS}
            for j, n in enumerate(chosen.names)
        },
        predictable=tuple(sorted(kept)),
    )


@functools.lru_cache(maxsize=2)
def _read(store: Any, split: config.Split) -> tuple[selection.Cells, tuple[Source, ...]]:
    """Cells and sessions of a store; the lines of a table share them."""
    each = lambda: (store.session(i) for i in range(len(store.sessions)))
    cells = selection.cells_of(each(), excess=False, split=split)
    return cells, tuple(_source(s) for s in each())


def divide(
    sources: Sequence[Source], diet: Diet, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Session ids that pretrain and that are fine-tuned on, in the order of `sources`.

    Raises:
      ConfigError: when a part has none.
    """
    reserve = _reserve(sources, diet.reserve)
    good = [s for s in sources if s.predictable]
    other = [s for s in sources if not s.predictable]
    spare = [s for s in other if s.container in reserve]
    rest = [s for s in other if s.container not in reserve]
    inhibitory = {x.upper() for x in diet.inhibitory}
    quiet = [s for s in sources if s.line.upper() in inhibitory]
    rng = np.random.default_rng([seed, 31])
    drawn = lambda pool, n: [pool[k] for k in np.sort(rng.permutation(len(pool))[:n])]
    if diet.pretrain == "mixed":
        first = spare + drawn(good, round(diet.partial * len(good)))
    elif diet.pretrain == "random":
        first = drawn(good + spare, len(good))
    else:
        first = {
            "none": [], "predictable": good, "unpredictable": spare, "inhibitory": quiet,
        }[diet.pretrain]  # fmt: skip
    second = {
        "unpredictable": rest,
        "predictable": good,
        "excitatory": [s for s in good if s not in quiet] + rest,
        "all": good + rest,
    }[diet.finetune]
    for name, part in (("pretrain", first), ("finetune", second)):
        if not part and getattr(diet, name) != "none":
            raise ConfigError(
                f"no session is left to {name}",
                where=f"diet.{name}",
                found=f"{getattr(diet, name)!r}; lines {_listed(sources)}",
                remedy="Use data of more lines, or other thresholds.",
            )
    order = [s.session for s in sources]
    ids = lambda part: tuple(x for x in order if x in {s.session for s in part})
    return ids(first), ids(second)


def _reserve(sources: Sequence[Source], share: float) -> set[str]:
    """Containers of unpredictable lines that may pretrain: of each line the share, at least
    one where it has two."""
    out: set[str] = set()
    for line in sorted({s.line for s in sources if not s.predictable}):
        own = sorted({s.container for s in sources if s.line == line})
        own.sort(key=lambda c: hashlib.sha256(f"reserve\0{c}".encode()).hexdigest())
        if len(own) > 1:
            out |= set(own[: min(max(round(share * len(own)), 1), len(own) - 1)])
    return out


def _source(session: Any) -> Source:
    columns = session.neurons.columns
    line = sorted({_text(x) for x in columns["cell_line"]}) if "cell_line" in columns else []
    if len(line) != 1:
        raise SplitError(
            "the cells of a session must be of one line",
            where=f"session {session.session}, neuron/cell_line",
            found=", ".join(line) or "no line",
        )
    box = {_text(x) for x in columns.get("container", ())} - {""}
    # Without a container the animal holds together what may be the same cells.
    own = sorted(box)[0] if box else f"animal {session.animal}"
    return Source(session.session, session.animal, own, line[0], False)


def _text(x: Any) -> str:
    return x.decode("utf-8", "replace") if isinstance(x, bytes) else str(x)


def _listed(sources: Sequence[Source]) -> str:
    of = {s.line: s.predictable for s in sources}
    return ", ".join(f"{k} ({'predictable' if v else 'not'})" for k, v in sorted(of.items()))
