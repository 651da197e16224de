"""What the builders share: Sessions in, ArrayRecord files and `sessions.h5` out.

tensorflow-datasets gathers all records of a split before it writes them, and needs
TensorFlow where they exceed 1 GB. Recordings come in order and need no shuffling, so
the records are written as they come: memory holds one session, whatever the size.
"""

from __future__ import annotations

import abc
import contextlib
import dataclasses
import errno
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow_datasets as tfds
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import example_serializer, naming

from calm_jax.config import Simulation
from calm_jax.errors import ConfigError, writing
from calm_jax.recordings.session import Session
from calm_jax.recordings.store import SPLIT, StoreWriter

SHARD_BYTES = 256 << 20
# Noise does not compress; without compression a record is read three times as fast.
WRITER_OPTIONS = "group_size:1,uncompressed"


@dataclasses.dataclass(eq=False)
class SessionsConfig(tfds.core.BuilderConfig):
    """One variant of a data set; the name is a fingerprint of what it was made from."""

    # Of simulated_population only.
    simulation: Simulation = dataclasses.field(default_factory=Simulation)
    source: str | None = None  # the folder or file that the other data sets read


class SessionBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
    """A builder of recordings; a subclass says which Sessions, in which order.

    The records of the one split, `recordings`, are in frame order: session by session,
    one record per trial or chunk of at most 1024 frames.
    """

    VERSION = tfds.core.Version("1.0.0")
    TITLE = ""
    CITATION = ""
    # Called with (sessions done, sessions in all) as the work goes on.
    progress: Callable[[int, int], None] = staticmethod(lambda done, total: None)

    @abc.abstractmethod
    def count(self) -> int:
        """How many sessions there are."""

    @abc.abstractmethod
    def sessions(self) -> Iterator[Session]:
        """The sessions, one at a time."""

    def _info(self) -> tfds.core.DatasetInfo:
        features = {
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
        return tfds.core.DatasetInfo(
            builder=self,
            description=self.TITLE,
            citation=self.CITATION or None,
            disable_shuffling=True,
            features=tfds.features.FeaturesDict(features),
        )

    def _split_generators(self, dl_manager: Any) -> dict[str, Iterator]:
        del dl_manager  # nothing is downloaded
        return {SPLIT: self._generate_examples()}

    def _generate_examples(self) -> Iterator[tuple[int, dict[str, Any]]]:
        writer = StoreWriter(self.data_dir)
        try:
            number, total = 0, self.count()
            self.progress(0, total)
            for i, session in enumerate(self.sessions()):
                for record in writer.add(session):
                    yield number, record
                    number += 1
                self.progress(i + 1, total)
            # Left to `_download_and_prepare`: the sizes of the shards belong in the index.
            self._writer = writer
        except BaseException:
            writer.abandon()
            raise

    def _download_and_prepare(self, dl_manager: Any, download_config: Any) -> None:
        """Writes the records in the order they come, in shards, in constant memory."""
        del download_config
        [(name, examples)] = self._split_generators(dl_manager).items()
        template = naming.ShardedFileTemplate(
            data_dir=self.data_path,
            dataset_name=self.name,
            split=name,
            filetype_suffix="array_record",
        )
        with writing(self.data_path):
            lengths, size = _write_shards(self.info.features, examples, Path(self.data_path))
            shards = []
            for i in range(len(lengths)):
                path = Path(template.sharded_filepath(shard_index=i, num_shards=len(lengths)))
                (Path(self.data_path) / f"shard-{i}.tmp").rename(path)
                shards.append(path)
            self._writer.close(shards)
        split = tfds.core.SplitInfo(
            name=name, shard_lengths=lengths, num_bytes=size, filename_template=template
        )
        self.info.set_splits(tfds.core.SplitDict([split]))

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


def source_of(builder: SessionBuilder) -> str:
    """The source in the config of a builder; see `named_source`."""
    config = builder.builder_config
    return named_source(builder.name, config.source if config is not None else None)


def _write_shards(features: Any, examples: Iterator, folder: Path) -> tuple[list[int], int]:
    """Writes `shard-<i>.tmp` files; returns the records in each and the bytes of all."""
    serializer = example_serializer.ExampleSerializer(features.get_serialized_info())
    lengths: list[int] = []
    held, size, writer = SHARD_BYTES, 0, None
    try:
        for _, example in examples:
            data = serializer.serialize_example(features.encode_example(example))
            with _disk_errors():
                if held >= SHARD_BYTES:
                    if writer is not None:
                        writer.close()
                    path = folder / f"shard-{len(lengths)}.tmp"
                    writer = ArrayRecordWriter(str(path), WRITER_OPTIONS)
                    lengths.append(0)
                    held = 0
                writer.write(data)
            lengths[-1] += 1
            held += len(data)
            size += len(data)
        with _disk_errors():
            writer.close()
    except BaseException:
        examples.close()  # lets go of sessions.h5
        if writer is not None:
            with contextlib.suppress(RuntimeError):  # it fails again for the same reason
                writer.close()
        raise
    return lengths, size


@contextlib.contextmanager
def _disk_errors() -> Iterator[None]:
    """ArrayRecord tells of a full disk in a RuntimeError's text; here it is an OSError."""
    try:
        yield
    except RuntimeError as e:
        number = errno.ENOSPC if "No space left" in str(e) else errno.EIO
        raise OSError(number, str(e)) from e
