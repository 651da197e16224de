"""Builder of `celegans_dag2023`."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.interchange import DAMAGE
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.session import Channel, Session
from data.session_builder import SessionBuilder, SessionsConfig, named_source

NEEDED = ("f_over_f20", "t")
CONTINUOUS = (
    "velocity", "angular_velocity", "head_angle", "worm_curvature", "pumping", "nose_curling",
)  # fmt: skip


class CelegansDag2023(SessionBuilder):
    """One session per worm; see README.md."""

    TITLE = "Whole-brain calcium imaging of behaving C. elegans (Dag et al., Cell 2023)."
    CITATION = "Dag et al., Cell 2023, doi:10.1016/j.cell.2023.04.023"

    @classmethod
    def sources(cls, config: SessionsConfig) -> list[Path]:
        return files(named_source(cls.name, config.source))

    @classmethod
    def session(cls, source: Path, config: SessionsConfig) -> Session:
        return read_worm(source)


def files(source: str) -> list[Path]:
    """The `.npz` files of the folder, sorted by name.

    Raises:
      RecordingError: when the folder is missing or holds none.
    """
    folder = Path(source)
    if folder.is_file():
        return [folder]
    found = sorted(p for p in folder.glob("*.npz") if not p.name.startswith("."))
    if not found:
        raise RecordingError(
            "no recordings of worms" if folder.is_dir() else "no such folder",
            where=folder,
            expected="a folder of .npz files with f_over_f20 and t",
            remedy="The layout is described in data/celegans_dag2023/README.md.",
        )
    return found


def read_worm(path: str | Path) -> Session:
    """One worm: dF/F = F / F20 - 1, time stamps from 0 s, seven behaviour channels.

    Channels that hold no number at all (pumping was not scored in most worms) are
    left out with a note. The z-scored traces of the file are not used: they were
    scaled over the whole recording, test part included.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with located(path):
        try:
            with np.load(path, allow_pickle=False) as archive:
                missing = [k for k in NEEDED if k not in archive]
                if missing:
                    raise RecordingError(
                        f"no field {missing[0]!r}",
                        found=", ".join(archive.files[:12]),
                        expected="the fields described in data/celegans_dag2023/README.md",
                    )
                wanted = (*NEEDED, *CONTINUOUS, "reversal", "animal", "strain")
                field = {k: archive[k] for k in wanted if k in archive}
        except DAMAGE as e:
            raise RecordingError("the file cannot be read", found=str(e)) from e
        traces = field["f_over_f20"]
        if traces.ndim != 2 or traces.shape[1] != field["t"].size:
            raise RecordingError(
                "traces and time stamps do not fit",
                where="f_over_f20",
                found=f"shapes {traces.shape} and {field['t'].shape}",
                expected="(neurons, frames) and (frames,)",
            )
        notes = ["dF/F = f_over_f20 - 1"]
        behavior = {}
        for name in CONTINUOUS:
            if name in field and np.isfinite(field[name]).any():
                behavior[name] = Channel(field[name])
            else:
                notes.append(f"{name} was not scored")
        if "reversal" in field:
            behavior["reversal"] = Channel(field["reversal"], "categorical")
        if "strain" in field:
            notes.append(f"strain {field['strain']}")
        return Session(
            traces=traces.T - np.float32(1),
            timestamps=field["t"] - field["t"][0],
            behavior=behavior,
            unit="dF/F",
            animal=str(field.get("animal", path.stem)),
            session=path.stem,
            notes=tuple(notes),
        )
