"""Saved decoders: JSON for what they are, npz for their parameters."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from calm_jax import config, runs
from calm_jax.errors import CalmError, ConfigError, RunError
from calm_jax.files import replacing
from calm_jax.recordings.session import Session
from calm_jax.recordings.targets import Target
from calm_jax.runs import Trained

# What makes the shape of a decoder, or the meaning of its parameters.
_SHAPE = ("head", "rank", "kernel", "look_ahead", "every_frame", "traces")


def save(
    folder: Path,
    trained: Trained,
    sessions: Sequence[Session],
    targets: Sequence[Target],
    settings: config.Decoding,
    rate: float,
) -> None:
    """Writes decoder.json: settings, targets with their scaling, sessions with their rows."""
    e = trained.run.experiment
    content = {
        "version": 1,
        "run": config.fingerprint((e.tokenizer, e.transformer)),
        "settings": config.to_dict(settings),
        "look_ahead_s": settings.look_ahead / rate,
        "rate": rate,
        "targets": [
            {"name": t.name, "classes": t.classes, "mean": t.mean, "sd": t.sd} for t in targets
        ],
        "sessions": [
            {"session": s.session, "animal": s.animal, "neurons": s.neurons.id.tolist()}
            for s in sessions
        ],
    }
    with replacing(folder / "decoder.json") as part:
        part.write_text(json.dumps(content) + "\n")


@dataclasses.dataclass(frozen=True, eq=False)
class Saved:
    """A decoder that `save` wrote; `content` is its JSON."""

    folder: Path
    content: dict[str, Any]
    settings: config.Decoding

    @classmethod
    def read(cls, folder: Path) -> Saved:
        """The decoder in a folder.

        Raises:
          RunError: when there is none, or it cannot be read.
        """
        path = Path(folder) / "decoder.json"
        try:
            content = json.loads(path.read_text())
            settings = config.from_dict(config.Decoding, content["settings"])
            _ = [(t["name"], t["classes"]) for t in content["targets"]]
            _ = [(s["session"], s["animal"], s["neurons"]) for s in content["sessions"]]
        except FileNotFoundError:
            raise RunError(
                "no decoder",
                where=folder,
                expected="a folder that `calm-jax decode` wrote, RUN/decoders/NAME",
            ) from None
        except (OSError, ValueError, KeyError, TypeError, CalmError) as e:
            raise RunError("the decoder cannot be read", where=path, found=str(e)) from e
        return cls(Path(folder), content, settings)

    def adapt(self, settings: config.Decoding) -> config.Decoding:
        """The settings with those of the saved decoder where they make its shape.

        Raises:
          ConfigError: when a decoder with a tuned backbone is to be gone on with.
        """
        if self.settings.fine_tune or settings.fine_tune:
            raise ConfigError(
                "a decoder is handed on with the backbone of the run, not a tuned one",
                where="--from",
                remedy="Give a decoder that was trained without --fine-tune.",
            )
        return dataclasses.replace(settings, **{k: getattr(self.settings, k) for k in _SHAPE})

    def classes(self) -> dict[str, tuple[str, ...]]:
        """The labels of its categorical targets, in order."""
        return {t["name"]: tuple(t["classes"]) for t in self.content["targets"] if t["classes"]}

    def check_targets(self, targets: Sequence[Target]) -> None:
        """Raises `ConfigError` when it decodes something else."""
        found = [(t["name"], bool(t["classes"])) for t in self.content["targets"]]
        if found != [(t.name, t.classes is not None) for t in targets]:
            raise ConfigError(
                "the decoder that is given decodes other targets",
                where="--target",
                found=", ".join(t.name for t in targets),
                expected=", ".join(name for name, _ in found) + ", in this order",
            )

    def arrays(self, seed: int) -> dict[str, np.ndarray]:
        """Its parameters by path; the last seed where there are fewer."""
        path = self.folder / f"seed{seed}.npz"
        path = path if path.is_file() else self.folder / "seed0.npz"
        try:
            with np.load(path, allow_pickle=False) as file:
                return {k: file[k] for k in file.files}
        except (OSError, ValueError, KeyError) as e:
            raise RunError("the decoder cannot be read", where=path, found=str(e)) from e


    def directions(self, width: int) -> list[np.ndarray]:
        """The directions (K, R) of every target of a pooled decoder.

        Args:
          width: K, of the features that they are to be applied to.

        Raises:
          RunError: when they are missing or of features of another width.
        """
        arrays, out = self.arrays(0), []
        for k in range(len(self.content["targets"])):
            found = arrays.get(f"{k}/directions")
            if found is None or found.ndim != 2 or found.shape[0] != width:
                raise RunError(
                    "the decoder is of another run or of another shape",
                    where=self.folder,
                    found=f"{k}/directions: {'missing' if found is None else found.shape}",
                    expected=f"({width}, directions)",
                )
            out.append(found)
        return out


def neuron_rows(
    saved: Saved,
    sessions: Sequence[Session],
    offset: np.ndarray,
    network: Any,
    seed: int,
) -> dict[str, np.ndarray]:
    """Parameters by path to begin with: the saved head, with the rows of neurons that it
    knows (by animal, session and id) and new rows for all others.

    Raises:
      RunError: when the head has another shape.
    """
    arrays = saved.arrays(seed)
    shapes, _ = jax.eval_shape(network.init, jax.random.key(0))
    wanted = runs.named(shapes)
    params, _ = network.init(jax.random.key(seed + 1000))
    rows = np.array(params["head"]["rows"])
    own, first = {}, 0
    for s in saved.content["sessions"]:
        for k, n in enumerate(s["neurons"]):
            own[s["animal"], s["session"], n] = first + k
        first += len(s["neurons"])
    for i, s in enumerate(sessions):
        for k, n in enumerate(s.neurons.id.tolist()):
            found = own.get((s.animal, s.session, n))
            if found is not None:
                rows[offset[i] + k] = arrays["head/rows"][found]
    arrays = {**arrays, "head/rows": rows}
    for name, shape in wanted.items():
        if name not in arrays or arrays[name].shape != shape.shape:
            raise RunError(
                "the decoder is of another run or of another shape",
                where=saved.folder,
                found=f"{name}: {arrays[name].shape if name in arrays else 'missing'}",
                expected=f"{shape.shape}",
            )
    return arrays
