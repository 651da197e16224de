"""Which recordings a benchmark is about, split and scaled the same way for every method."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
from pathlib import Path
from typing import Any

from calm_jax import config, scoring
from calm_jax.errors import ConfigError
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.recordings.build import build, data_sets
from calm_jax.recordings.memory import MemoryStore
from calm_jax.recordings.store import open_store

TRIALS, BLOCKS = 12, 4  # frames between origins, with and without trials


@dataclasses.dataclass(frozen=True)
class Source:
    """Recordings: a file or folder, or a data set.

    Attributes:
      data: a data set of `data/`; with `path`, only its reading options and rate count.
      path: a file or folder of recordings in any known format; None = the data set.
    """

    data: config.Data
    path: str | None = None

    @property
    def name(self) -> str:
        return self.data.name if self.path is None else Path(self.path).name


def source_of(
    data: str | None,
    default: config.Data,
    *,
    source: str | None = None,
    store: str | None = None,
    read: tuple[str, ...] = (),
    rate: float | None = None,
) -> Source:
    """What `--data`, `--source`, `--store`, `--read` and `--rate` name.

    Without `data` it is the `default`. With a `source`, or where no such file or folder
    exists, `data` is the name of a data set.

    Raises:
      ConfigError: when there is neither such a path nor such a data set.
    """
    settings = dataclasses.replace(
        default,
        store=default.store if store is None else store,
        read=read or default.read,
        rate=default.rate if rate is None else rate,
        held_out=(),
    )
    if data is None:
        if source is not None:
            settings = dataclasses.replace(settings, source=source)
        return Source(settings)
    if source is None and Path(data).exists():
        plain = config.Data(store=settings.store, read=read, rate=rate)
        return Source(plain, str(Path(data).resolve()))
    known = data_sets()
    if data not in known:
        near = difflib.get_close_matches(data, known, 1)
        raise ConfigError(
            "no such file, folder or data set",
            where="calm-jax benchmark --data",
            found=repr(data),
            expected=f"a path to recordings, or one of {', '.join(known)}",
            remedy=f"Did you mean {near[0]!r}?" if near else None,
        )
    return Source(
        config.Data(name=data, source=source, store=settings.store, read=read, rate=rate)
    )


def store_of(source: Source, experiment: config.Experiment) -> Any:
    """The recordings behind the interface of a store.

    Raises:
      CalmError: for recordings that cannot be read.
    """
    if source.path is None:
        return open_store(build(source.data))
    e = dataclasses.replace(experiment, data=source.data)
    return MemoryStore(scoring.recordings_of(Path(source.path), e, source.data.read))


def prepare(source: Source, experiment: config.Experiment) -> Prepared:
    """The recordings with the split and the scalers of the experiment's settings.

    Raises:
      CalmError: for recordings that cannot be read, split or scored.
    """
    store = store_of(source, experiment)
    made = splits.make_split(store, experiment.split)
    scalers = preprocess.fit(store, made, experiment.preprocess)
    scoring.check_varying(made.sessions, scalers)
    return Prepared(store, made, scalers)


def settings_of(prepared: Prepared, i: int, base: config.Forecasting) -> config.Forecasting:
    """Origins every 12 frames in a session with trials, every 4 in one without."""
    stride = TRIALS if len(prepared.store.sessions[i].trials) else BLOCKS
    return dataclasses.replace(base, origin_stride=stride)


def fingerprint(prepared: Prepared) -> str:
    """A hash of split and scalers: the same recordings prepared in the same way."""
    made = hashlib.sha256(prepared.splits.hash.encode())
    for arrays in (prepared.scalers.mean, prepared.scalers.sd):
        for x in arrays:
            made.update(x.tobytes())
    return made.hexdigest()[:16]
