"""What the builders share: Sessions in, ArrayRecord files and `sessions.h5` out.

tensorflow-datasets gathers all records of a split before it writes them, and needs
TensorFlow where they exceed 1 GB. Recordings come in order and need no shuffling, so
every session is written as it is read (`parts.py`), by one process or several
(`workers.py`): memory holds one session for each, whatever the size of the whole.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from tensorflow_datasets.core import naming

import calm_jax
from calm_jax.allocator import reuse_blocks
from calm_jax.config import Simulation, fingerprint
from calm_jax.errors import ConfigError, RecordingError, writing
from calm_jax.recordings.loading import at_rate
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import SPLIT
from calm_jax.recordings.store_writer import StoreWriter, twice
from calm_jax.visual_config import VisualSimulation
from data import parts, workers

LEFT_OUT = "left_out.json"  # beside the records: what --skip-unreadable left out


@dataclasses.dataclass(eq=False)
class SessionsConfig(tfds.core.BuilderConfig):
    """One variant of a data set; the name is a fingerprint of what it was made from."""

    # Of simulated_population only.
    simulation: Simulation = dataclasses.field(default_factory=Simulation)
    # Of simulated_visual only.
    visual: VisualSimulation = dataclasses.field(default_factory=VisualSimulation)
    source: str | None = None  # the folder or file that the other data sets read
    read: tuple[str, ...] = ()  # options of the reader, name=value
    rate: float | None = None  # Hz that every session is resampled to


class SessionBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of recordings; a subclass says which Sessions, in which order.

    The records of the one split, `recordings`, are in frame order: session by session,
    one record per trial or chunk of at most 1024 frames.

    Attributes:
      progress: called with (sessions done, sessions in all) as the work goes on.
      workers: processes that read recordings.
      skip_unreadable: leave out what cannot be read, and note it in `left_out.json`.
      unfinished: where parts are kept until the store is complete; default: beside it.
    """

    VERSION = tfds.core.Version("1.0.0")
    TITLE = ""
    CITATION = ""
    FIELD = "simulation"  # of the config that a simulation is made from
    progress: Callable[[int, int], None] = staticmethod(lambda done, total: None)
    workers: int = 1
    skip_unreadable: bool = False
    unfinished: Path | None = None

    @classmethod
    @abc.abstractmethod
    def sources(cls, config: SessionsConfig) -> list[Any]:
        """What the sessions are read from, in order: paths, or numbers of simulations."""

    @classmethod
    @abc.abstractmethod
    def session(cls, source: Any, config: SessionsConfig) -> Session:
        """One session."""

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.TITLE,
            citation=self.CITATION or None,
            disable_shuffling=True,
            features=_features(),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Any]:
        raise AssertionError("records are written by _download_and_prepare")

    def _generate_examples(self) -> Any:
        raise AssertionError("records are written by _download_and_prepare")

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Reads what has no part yet, then puts the parts together, in constant memory."""
        del dl_manager, download_config  # nothing is downloaded
        folder = Path(self.data_path)
        unfinished = self.unfinished or folder / "parts"
        template = naming.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=self.name,
            split=SPLIT,
            filetype_suffix="array_record",
        )
        with writing(folder):
            made, left_out = self._parts(unfinished)
            lengths, size = parts.assemble(made, folder, _features())
            shards = []
            for i in range(len(lengths)):
                path = Path(template.sharded_filepath(shard_index=i, num_shards=len(lengths)))
                (folder / f"shard-{i}.tmp").rename(path)
                shards.append(path)
            writer = StoreWriter(folder)
            try:
                parts.write_sides(made, writer)
                writer.close(shards)
            except BaseException:
                writer.abandon()
                raise
            if left_out:
                (folder / LEFT_OUT).write_text(json.dumps([str(e) for e in left_out], indent=1))
        split = tfds.core.SplitInfo(
            name=SPLIT, shard_lengths=lengths, num_bytes=size, filename_template=template
        )
        self.info.set_splits(tfds.core.SplitDict([split]))

    def _parts(self, unfinished: Path) -> tuple[list[parts.Part], list[RecordingError]]:
        """The part of every session, made or found; and the errors of those left out."""
        config = self.builder_config or SessionsConfig(name="any")
        sources = self.sources(config)
        found: dict[int, Any] = {}
        jobs = []
        for i, source in enumerate(sources):
            folder = unfinished / part_key(source, config)
            found[i] = parts.find_part(folder)
            if found[i] is None:
                jobs.append((i, source, folder))
        done = len(sources) - len(jobs)
        self.progress(done, len(sources))
        task = functools.partial(_make_part, type(self), config)
        for k, result in workers.run(task, jobs, self.workers, lambda job: str(job[1])):
            found[jobs[k][0]] = result
            done += 1
            self.progress(done, len(sources))
        bad = [found[i] for i in range(len(sources)) if isinstance(found[i], RecordingError)]
        made = [found[i] for i in range(len(sources)) if isinstance(found[i], parts.Part)]
        if bad and not (self.skip_unreadable and made):
            raise _unreadable(bad, len(sources), config.source)
        seen: dict[tuple[str, str], Any] = {}
        for i, source in enumerate(sources):
            if isinstance(found[i], parts.Part):
                key = (found[i].row["animal"], found[i].row["session"])
                if key in seen:
                    raise twice(*key, f"{seen[key]} and {source}")
                seen[key] = source
        return made, bad

    def _log_download_bytes(self) -> None:
        """Nothing is downloaded; the caller shows progress."""

    def _log_download_done(self) -> None:
        """See `_log_download_bytes`."""


def named_source(name: str, source: str | None) -> str:
    """The folder or file that the user named for the data set `name`.

    Raises:
      ConfigError: when none was named.
    """
    if not source:
        raise ConfigError(
            f"the data set {name!r} needs a source",
            where="data.source",
            expected="the folder that holds the recordings",
            remedy=f"make data NAME={name} SOURCE=folder, or --data.source folder.",
        )
    return source


def files_fingerprint(paths: Sequence[Path], *more: str) -> str:
    """A hash of the names, sizes and times of files (of all files in a folder), and of `more`."""
    digest = hashlib.sha256()
    for path in paths:
        inside = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        for file in inside:
            stat = file.stat()
            name = file.relative_to(path.parent)
            digest.update(f"{name}|{stat.st_size}|{stat.st_mtime_ns}\n".encode())
    for text in more:
        digest.update(f"{text}\n".encode())
    return digest.hexdigest()[:12]


def settings_texts(config: SessionsConfig) -> list[str]:
    """What changes every session: the options of the reader and the rate, if any."""
    return [*config.read, *([f"rate {config.rate!r}"] if config.rate is not None else [])]


def part_key(source: Any, config: SessionsConfig) -> str:
    """The name of the part of one source: another one when anything it depends on changes."""
    more = [str(source), calm_jax.__version__, *settings_texts(config)]
    if isinstance(source, Path):
        return files_fingerprint([source], *more)
    made_from = (config.simulation, config.visual)
    return files_fingerprint([], fingerprint(made_from), *more)


def _features() -> tfds.features.FeaturesDict:
    return tfds.features.FeaturesDict(
        {
            "session": tfds.features.Scalar(np.int32, doc="index of the session"),
            "start": tfds.features.Scalar(np.int64, doc="first frame"),
            "traces": tfds.features.Tensor(
                shape=(None, None),
                dtype=np.float32,
                encoding="bytes",
                doc="(frames, neurons)",
            ),
            # Flat: tensorflow-datasets misreads matrices of a single byte.
            "valid": tfds.features.Tensor(
                shape=(None,),
                dtype=np.bool_,
                encoding="bytes",
                doc="frames x neurons, or frames, or empty where every sample is valid",
            ),
        }
    )


def _make_part(cls: type, config: SessionsConfig, job: tuple[int, Any, Path]) -> parts.Part:
    """Reads one source and writes its part; runs in a worker."""
    reuse_blocks()
    number, source, folder = job
    session = at_rate(cls.session(source, config), config.rate)
    with writing(folder):
        return parts.write_part(folder, session, number)


def _unreadable(errors: list[RecordingError], total: int, source: str | None) -> RecordingError:
    """The one error, or all of them in one."""
    if len(errors) == 1:
        return errors[0]
    shown = "; ".join(str(e) for e in errors[:20])
    return RecordingError(
        f"{len(errors)} of {total} recordings cannot be read",
        where=source,
        found=shown + (f"; and {len(errors) - 20} more" if len(errors) > 20 else ""),
        remedy="Mend or remove them (what was read is kept), or leave them out with "
        "--skip-unreadable.",
    )
