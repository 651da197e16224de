"""Checkpoints that are whole or absent.

A step is written to a temporary folder (arrays by orbax, `meta.json`, then
`manifest.json` with the SHA-256 of every file) and renamed when complete. Reading
takes the newest step whose files match their manifest: orbax alone would restore a
flipped bit silently and take an empty folder for the latest step.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from calm_jax.errors import RunError, writing
from calm_jax.training.mesh import agree, barrier

MANIFEST, META, ARRAYS = "manifest.json", "meta.json", "arrays"
_TEMPORARY = "tmp-"
_FULL = ("no space left", "disk quota", "file too large", "resource_exhausted")


class Checkpoints:
    """The checkpoints of one stage, `folder/<step>/`.

    In a run over several processes all call `save` and `restore`; the folder is
    one that all of them see.

    Args:
      folder: created with the first save.
      keep: how many of the newest are kept (the best is kept besides).
      notify: gets one line about anything skipped.
    """

    def __init__(
        self, folder: Path, *, keep: int = 2, notify: Callable[[str], None] = lambda text: None
    ) -> None:
        self.folder, self.keep, self.notify = Path(folder).absolute(), max(1, keep), notify
        self._arrays = ocp.Checkpointer(ocp.PyTreeCheckpointHandler())

    def steps(self) -> list[int]:
        """The steps that have a folder, verified or not, ascending."""
        if not self.folder.is_dir():
            return []
        return sorted(int(p.name) for p in self.folder.iterdir() if p.name.isdigit())

    def path(self, step: int) -> Path:
        return self.folder / f"{step:08d}"

    def save(self, step: int, arrays: dict[str, Any], meta: dict[str, Any], best: int = 0) -> None:
        """Writes one step; then removes all but the newest `keep` and step `best`.

        Raises:
          RunError: when the disk is full or not writable; earlier steps stay.
        """
        first = jax.process_index() == 0
        temporary = self.folder / f"{_TEMPORARY}{step:08d}"
        if first:
            self._begin(temporary)
        barrier(f"begin {step}")
        failed = None
        try:
            self._arrays.save(temporary / ARRAYS, arrays, force=True)
            if first:
                self._commit(step, temporary, meta)
        except Exception as e:
            failed = e
        if failed is not None:
            failed = self._explained(failed)
        if agree(int(failed is not None)):
            shutil.rmtree(temporary, ignore_errors=True)
            raise failed or RunError("another process could not save", where=self.folder)
        if first:
            self._prune(step, best)

    def _begin(self, temporary: Path) -> None:
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
            for old in self.folder.glob(f"{_TEMPORARY}*"):
                shutil.rmtree(old, ignore_errors=True)
            temporary.mkdir()

    def _commit(self, step: int, temporary: Path, meta: dict[str, Any]) -> None:
        (temporary / META).write_text(json.dumps(meta, indent=2) + "\n")
        sums = {
            str(p.relative_to(temporary)): _sha256(p)
            for p in sorted(temporary.rglob("*"))
            if p.is_file()
        }
        (temporary / MANIFEST).write_text(json.dumps(sums, indent=2) + "\n")
        for name in (*sums, MANIFEST):
            _flush(temporary / name)
        target = self.path(step)
        if target.exists():  # a damaged step, or the same one after a restart
            shutil.rmtree(target)
        os.rename(temporary, target)
        _flush(self.folder)

    def _explained(self, error: Exception) -> Exception:
        """A RunError for a full or read-only disk; any other error as it is."""
        text = str(error).lower()
        if isinstance(error, OSError):
            try:
                with writing(self.folder):
                    raise error
            except RunError as e:
                return e
            except OSError:
                pass
        if any(words in text for words in _FULL):
            return RunError(
                "the disk is full",
                where=self.folder,
                remedy="Free some space and run the same command again: earlier checkpoints stand.",
            )
        return error

    def _prune(self, newest: int, best: int) -> None:
        older = [s for s in self.steps() if s <= newest]
        kept = {*older[-self.keep :], best}  # what is newer was found damaged
        for step in self.steps():
            if step not in kept:
                shutil.rmtree(self.path(step), ignore_errors=True)

    def fault(self, step: int) -> str | None:
        """What is wrong with the files of a step; None when they all verify."""
        folder = self.path(step)
        try:
            sums = json.loads((folder / MANIFEST).read_text())
        except (OSError, ValueError):
            return "it has no readable manifest"
        if not isinstance(sums, dict) or META not in sums:
            return "its manifest is incomplete"
        for name, expected in sums.items():
            try:
                if _sha256(folder / name) != expected:
                    return f"{name} does not match its checksum"
            except OSError:
                return f"{name} is missing"
        return None

    def newest(self) -> int | None:
        """The newest step that verifies; skipped ones are reported."""
        for step in reversed(self.steps()):
            fault = self.fault(step)
            if fault is None:
                return step
            self.notify(f"checkpoint {step} is skipped: {fault}")
        return None

    def meta(self, step: int) -> dict[str, Any]:
        return json.loads((self.path(step) / META).read_text())

    def restore(self, step: int, like: dict[str, Any]) -> dict[str, np.ndarray]:
        """The arrays of a verified step, with the names, shapes and types of `like`.

        Raises:
          RunError: when they are of another model.
        """
        folder = self.path(step) / ARRAYS
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # orbax on sharding; we place the arrays ourselves
            found = self._arrays.metadata(folder).item_metadata
            names = set(found.keys())
            self._check_names(step, names, like)
            args = {n: ocp.RestoreArgs(restore_type=np.ndarray) for n in like}
            arrays = self._arrays.restore(folder, restore_args=args)
        for name, leaf in like.items():
            a, b = arrays[name], np.asarray(leaf)
            if a.shape != b.shape or a.dtype != b.dtype:
                raise RunError(
                    f"{name} has another shape",
                    where=self.path(step),
                    found=f"{a.dtype} {a.shape}",
                    expected=f"{b.dtype} {b.shape}",
                    remedy="Give the run another folder (--run).",
                )
        return arrays

    def _check_names(self, step: int, found: Iterable[str], like: dict[str, Any]) -> None:
        found = set(found)
        if found != set(like):
            odd = sorted(found ^ set(like))
            raise RunError(
                "the checkpoint is of another model",
                where=self.path(step),
                found=f"{len(odd)} arrays that only one of them has, {odd[0]!r} first",
                remedy="Give the run another folder (--run).",
            )


def _sha256(path: Path) -> str:
    with open(path, "rb") as f:
        return hashlib.file_digest(f, "sha256").hexdigest()


def _flush(path: Path) -> None:
    """Waits until a file or folder is on the disk, so that a rename never outruns it."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
