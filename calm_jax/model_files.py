"""A model on disk to hand on: `model.json` says what it is, `weights.safetensors` holds it.

No pickle, nothing executed. `model.json` holds the sha256 of every other file, so that the
sha256 of `model.json` alone stands for the whole model.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import calm_jax
from calm_jax.errors import WeightsError
from calm_jax.files import replacing

FORMAT, VERSION = "calm_jax model", 1
ABOUT, WEIGHTS = "model.json", "weights.safetensors"


def write(
    folder: Path,
    content: Mapping[str, Any],
    arrays: Mapping[str, np.ndarray],
    others: Mapping[str, bytes] | None = None,
) -> str:
    """Writes a model; returns the sha256 of its `model.json`.

    The same content and arrays give the same bytes.

    Args:
      content: JSON values. arrays: by name. others: further files by path within the folder.

    Raises:
      RunError: when the folder cannot be written.
    """
    from safetensors.numpy import save

    folder = Path(folder)
    named = {k: np.ascontiguousarray(arrays[k]) for k in sorted(arrays)}
    files = {WEIGHTS: save(named)}
    files |= others or {}
    about = {
        "format": FORMAT,
        "version": VERSION,
        "calm_jax": calm_jax.__version__,
        "files": {name: _hash(data) for name, data in sorted(files.items())},
        **content,
    }
    files[ABOUT] = (json.dumps(about, indent=1) + "\n").encode()
    # The description comes last: a folder that has one is complete.
    for name, data in files.items():
        with replacing(folder / name) as part:
            part.write_bytes(data)
    return _hash(files[ABOUT])


def is_model(folder: Path | str) -> bool:
    """Whether a folder holds a model that `write` wrote."""
    return (Path(folder) / ABOUT).is_file()


def read(
    folder: Path | str, keys: Sequence[str] = (), sha256: str | None = None
) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """The content of `model.json` and the arrays, every file checked against its sha256.

    Args:
      keys: that the content must have. sha256: of `model.json`, where it is known.

    Raises:
      WeightsError: no model, of another format or a later version, or damaged.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    path = Path(folder) / ABOUT
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise WeightsError(
            "no model here",
            where=folder,
            expected=f"a folder with {ABOUT} and {WEIGHTS}, as `calm-jax export` writes it",
        ) from None
    except OSError as e:
        raise WeightsError("cannot be read", where=path, found=e.strerror) from e
    if sha256 is not None and _hash(data) != sha256.lower():
        raise WeightsError(
            "this is not the model that was asked for",
            where=path,
            found=f"sha256 {_hash(data)}",
            expected=sha256,
            remedy="Get the model again from where its sha256 was given.",
        )
    content = _content(path, data, ("files", *keys))
    for name, wanted in content["files"].items():
        if _hash(_bytes(Path(folder), name)) != wanted:
            raise WeightsError(
                "the file is damaged, or not of this model",
                where=Path(folder) / name,
                found="another sha256",
                expected=wanted,
                remedy="Get or export the model again.",
            )
    try:
        return content, load(_bytes(Path(folder), WEIGHTS))
    except (SafetensorError, ValueError, KeyError) as e:
        raise WeightsError(
            "the file is damaged", where=Path(folder) / WEIGHTS, found=str(e) or type(e).__name__
        ) from e


def _content(path: Path, data: bytes, keys: Sequence[str]) -> dict[str, Any]:
    """The checked JSON of a description."""
    try:
        content = json.loads(data)
    except ValueError as e:
        raise WeightsError(
            "no JSON", where=path, found=str(e), remedy="Get or export the model again."
        ) from e
    found = content.get("format") if isinstance(content, dict) else type(content).__name__
    if found != FORMAT:
        raise WeightsError(
            "another format", where=path, found=repr(found), expected=repr(FORMAT)
        )
    version = content.get("version")
    if type(version) is not int or not 1 <= version <= VERSION:
        raise WeightsError(
            "a format version that this calm_jax does not know",
            where=path,
            found=repr(version),
            expected=f"1 to {VERSION}",
            remedy=f"The file was written by calm_jax {content.get('calm_jax', '?')}; "
            f"this is {calm_jax.__version__}.",
        )
    absent = [k for k in keys if k not in content]
    if absent:
        raise WeightsError(
            f"the key {absent[0]!r} is missing",
            where=path,
            remedy="Get or export the model again.",
        )
    if not isinstance(content["files"], dict) or WEIGHTS not in content["files"]:
        raise WeightsError("it names no weights", where=path, expected=f"files: {WEIGHTS}")
    return content


def _bytes(folder: Path, name: str) -> bytes:
    if Path(name).is_absolute() or ".." in Path(name).parts:
        raise WeightsError("the name of a file leaves the folder", where=folder, found=repr(name))
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError:
        raise WeightsError(
            "a file of the model is missing",
            where=folder / name,
            remedy="Get or export the model again.",
        ) from None
    except OSError as e:
        raise WeightsError("cannot be read", where=folder / name, found=e.strerror) from e


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
