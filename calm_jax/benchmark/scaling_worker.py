"""One point of a scaling study, trained and scored in a process of its own.

`python -m calm_jax.benchmark.scaling_worker POINT.json` writes the result it names.
"""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import time
from pathlib import Path
from typing import Any

from calm_jax import config, evaluation
from calm_jax.baselines import copy_last, population_ridge, shared_linear
from calm_jax.benchmark import calm, recordings
from calm_jax.benchmark.recordings import Source
from calm_jax.benchmark.subsets import Choice, Subset
from calm_jax.benchmark.worker import BATCH, finish, peak_mib
from calm_jax.recordings import preprocess, splits
from calm_jax.recordings.batches import Prepared
from calm_jax.rows import row

REFERENCES = {
    "copy_last": copy_last,
    "shared_linear": shared_linear,
    "population_ridge": population_ridge,
}
WINDOWS = 240  # of a session that are scored, about, unless said otherwise


@dataclasses.dataclass(frozen=True)
class Point:
    """What one process does.

    Attributes:
      name: in the rows. source, experiment: with the width that is asked for.
      choice: of sessions. size: sessions trained on; 0 = the references.
      seed, budget_seconds: of the training. folder, out: where to.
      windows: of a session that are scored, about.
      steps: of the transformer; None = as many as the budget holds.
    """

    name: str
    source: Source
    experiment: config.Experiment
    choice: Choice
    size: int
    seed: int
    budget_seconds: float
    folder: str
    out: str
    windows: int = WINDOWS
    steps: int | None = None

    def dumps(self) -> str:
        """JSON."""
        return json.dumps(config.to_dict(self))

    @classmethod
    def loads(cls, text: str) -> Point:
        """The point from JSON."""
        data = json.loads(text)
        source = data.pop("source")
        choice = {k: tuple(v) for k, v in data.pop("choice").items()}
        return cls(
            source=Source(config.from_dict(config.Data, source["data"]), source["path"]),
            experiment=config.from_dict(config.Experiment, data.pop("experiment")),
            choice=Choice(**choice),
            **data,
        )


def run(point: Point) -> dict[str, Any]:
    """Rows of every session that is scored, as JSON values."""
    store = recordings.store_of(point.source, point.experiment)
    choice = point.choice
    tested = [*choice.seen, *choice.held_out]
    index = [*choice.train[: point.size], *choice.held_out] if point.size else tested
    subset = Subset(store, index)
    held_out = [store.sessions[i].session for i in choice.held_out] if point.size else []
    made = splits.make_split(subset, point.experiment.split, held_out)
    scalers = preprocess.fit(subset, made, point.experiment.preprocess)
    prepared = Prepared(subset, made, scalers)
    begin, tuning = time.monotonic(), []
    if point.size:
        how = {"seed": point.seed, "folder": Path(point.folder)}
        if point.steps is None:
            how["budget_seconds"] = point.budget_seconds
            own = calm.fit(point.experiment, prepared, **how)
        else:
            own = calm.fit_steps(point.experiment, prepared, steps=point.steps, **how)
        methods, tuning = {point.name: own}, own.tuning
    else:
        f = point.experiment.forecasting
        methods = {
            name: module.fit(prepared, made, f.context, f.horizon)
            for name, module in REFERENCES.items()
        }
    seconds = time.monotonic() - begin
    rows = []
    for i in (index.index(k) for k in tested):
        scores = evaluation.score_forecasts(
            prepared, made, methods,
            settings_of(prepared, i, point.experiment.forecasting, point.windows), sessions=[i],
            protocols=["B"], batch=BATCH,
        )  # fmt: skip
        rows += [
            r
            for r in evaluation.rows_of(scores, point.seed if point.size else None)
            if r["session"] is not None and r["step"] is None
        ]
    if point.size:
        made = {"seconds": seconds, "peak_mib": peak_mib(), "steps": tuning[-1]["steps"]}
        for name, value in made.items():
            rows.append(row("B", point.name, name, value, seed=point.seed))
    return {"rows": rows, "tuning": tuning}


def settings_of(
    prepared: Prepared, i: int, base: config.Forecasting, windows: int = WINDOWS
) -> config.Forecasting:
    """The benchmark's origins, or as many times rarer as leaves about `windows` of them."""
    own = recordings.settings_of(prepared, i, base)
    ranges = prepared.splits.parts[i]["test"]
    room = (ranges[:, 1] - ranges[:, 0] - own.context - own.horizon + 1).clip(0)
    count = sum(math.ceil(n / own.origin_stride) for n in room)
    times = max(1, count // windows)
    return dataclasses.replace(own, origin_stride=own.origin_stride * times)


def main(path: str) -> int:
    """Runs the point at `path`."""
    return finish(Point.loads(Path(path).read_text()), run)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
