"""Where training reports: metrics.jsonl, TensorBoard, a progress bar or plain lines."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from calm_jax.errors import writing

METRICS = "metrics.jsonl"
_PLAIN_SECONDS = 5.0  # between two lines of a stage where there is no progress bar


class Log:
    """The log of one stage of a run.

    Args:
      folder: the run folder; None writes no files.
      stage: stands in every line, so that stages share one file.
      console: where people read; None is stderr.
      shown: False prints nothing (processes other than the first).
    """

    def __init__(
        self,
        folder: Path | None,
        *,
        stage: str = "train",
        console: Console | None = None,
        shown: bool = True,
        tensorboard: bool = True,
    ) -> None:
        self.folder = None if folder is None else Path(folder)
        self.stage, self.shown = stage, shown
        self.console = console or Console(stderr=True, highlight=False)
        self._tensorboard = tensorboard
        self._writer: Any = None
        self._file: Any = None
        self._bar: Progress | None = None
        self._last: tuple[float, int] | None = None
        self._steps, self._printed = 0, -math.inf

    @classmethod
    def silent(cls) -> Log:
        """A log that writes and prints nothing."""
        return cls(None, shown=False)

    def start(self, step: int, steps: int, *, evaluated: int | None = None) -> None:
        """Begins at `step` of `steps`; lines an earlier try wrote beyond it are dropped.

        Args:
          evaluated: the last step whose validation is part of the state; default `step`.
        """
        self._steps, self._last = steps, None
        if self.folder is not None:
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                last = step if evaluated is None else evaluated
                drop_after(self.folder / METRICS, self.stage, {"train": step, "valid": last})
                self._file = open(self.folder / METRICS, "a", buffering=1)
                if self._tensorboard:
                    from tensorboardX import SummaryWriter

                    self._writer = SummaryWriter(
                        str(self.folder / "tensorboard" / self.stage), purge_step=step + 1
                    )
        if self.shown and self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                TextColumn("{task.completed:.0f}/{task.total:.0f}"),
                TextColumn("{task.fields[numbers]}"),
                console=self.console,
                refresh_per_second=4,
            )
            self._bar.add_task(self.stage, total=steps, completed=step, numbers="")
            self._bar.start()

    def train(self, step: int, metrics: Mapping[str, float]) -> None:
        """The metrics of a training step."""
        now = time.monotonic()
        rate = None
        if self._last is not None and step > self._last[1]:
            rate = (step - self._last[1]) / max(now - self._last[0], 1e-9)
        self._last = (now, step)
        self._write("train", step, {**metrics, "steps_per_second": rate})
        text = f"loss {metrics['loss']:.4g}"
        if rate is not None:
            text += f"  {rate:.3g} steps/s  ETA {_clock((self._steps - step) / rate)}"
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=step, numbers=text)
        elif self.shown and (now - self._printed >= _PLAIN_SECONDS or step == self._steps):
            self._printed = now
            self._print(f"{self.stage} step {step}/{self._steps}  {text}")

    def evaluation(self, step: int, metrics: Mapping[str, float], better: bool) -> None:
        """The metrics of a validation."""
        self._write("valid", step, metrics)
        if self.shown:
            numbers = "  ".join(f"{k} {v:.4g}" for k, v in metrics.items())
            star = "  (best so far)" if better else ""
            self._print(f"{self.stage} step {step}/{self._steps}  validation {numbers}{star}")

    def note(self, text: str) -> None:
        """One line for the reader."""
        if self.shown:
            self._print(f"{self.stage}: {text}")

    def finish(self) -> None:
        """Closes the bar and the files."""
        if self._bar is not None:
            self._bar.stop()
        for each in (self._file, self._writer):
            if each is not None:
                each.close()
        self._bar = self._file = self._writer = None

    def _print(self, text: str) -> None:
        self.console.print(text, markup=False, soft_wrap=True)

    def _write(self, split: str, step: int, metrics: Mapping[str, float | None]) -> None:
        if self._file is None:
            return
        values = {k: _number(v) for k, v in metrics.items() if v is not None}
        line = {"stage": self.stage, "split": split, "step": step, **values, "time": time.time()}
        with writing(self.folder):
            self._file.write(json.dumps(line) + "\n")
            if self._writer is not None:
                for name, value in values.items():
                    if value is not None:
                        self._writer.add_scalar(f"{split}/{name}", value, step)


def drop_after(path: Path, stage: str, last: Mapping[str, int]) -> None:
    """Removes what an interrupted run wrote of `stage` after step `last[split]`.

    A line that was cut off in the middle goes too.
    """
    if not path.exists():
        return
    lines = path.read_text().splitlines(keepends=True)
    kept = []
    for line in lines:
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("stage") != stage or entry["step"] <= last[entry["split"]]:
            kept.append(line if line.endswith("\n") else line + "\n")
    if kept != lines:
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text("".join(kept))
        os.replace(temporary, path)


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    value = float(value)
    return value if math.isfinite(value) else None


def _clock(seconds: float) -> str:
    """Hours, minutes and seconds as 1:02:03 or 2:03."""
    m, s = divmod(int(seconds), 60)
    h, m = divmod(m, 60)
    return f"{h}:{m:02d}:{s:02d}" if h else f"{m}:{s:02d}"
