"""The model card that is written beside exported weights, from the run's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calm_jax import config, rows
from calm_jax.errors import CalmError
from calm_jax.files import replacing
from calm_jax.runs import Trained

_METRICS = ("mse", "r", "skill", "n_windows")


def write(trained: Trained, path: Path, sha256: str) -> None:
    """Writes the card of a finished run as Markdown; `sha256` is that of its model.json."""
    with replacing(path) as part:
        part.write_text(text(trained, sha256))


def text(trained: Trained, sha256: str) -> str:
    """The card: what it is, data, training, metrics with baselines, licence, limits, use."""
    e = trained.run.experiment
    parts = [
        f"# {e.name}",
        f"{(e.purpose or 'A calm_jax model').rstrip('.')}. Tokenizer and dual-axis transformer of "
        "calm_jax; it forecasts calcium traces, and behaviour is decoded from its features.",
        "## Load",
        "```python\nimport calm_jax\n"
        f'trained = calm_jax.load("FOLDER", sha256="{sha256}")\n```\n\n'
        "FOLDER is the folder of this file. The sha256 is that of `model.json`, which holds those "
        "of the other files; nothing in them is executed.",
        "## Data",
        _data(trained),
        "## Training",
        _training(trained),
        "## Metrics",
        _metrics(trained),
        "## Licence",
        "The code is under Apache-2.0. Weights are made from recordings: what these allow, their "
        "licence says.\n\n" + _licence(e.data.name),
        "## Limits",
        _limits(trained),
    ]
    return "\n\n".join(parts) + "\n"


def _data(trained: Trained) -> str:
    e, table = trained.run.experiment, trained.table
    counts = np.diff(table.offset)
    lines = [
        f"- data set `{e.data.name}`: {len(table.session)} sessions of "
        f"{len(set(table.animal.tolist()))} animals, {int(table.offset[-1])} neurons "
        f"({counts.min()} to {counts.max()} a session), {np.median(table.rate):.4g} frames/s",
        f"- split: {e.split.train:.0%} training, {e.split.valid:.0%} validation, "
        f"{e.split.test:.0%} test, by trial, or contiguous blocks with a gap of {e.split.gap} "
        f"frames; seed {e.split.seed}",
    ]
    if e.data.held_out:
        lines.append(f"- never trained on: {', '.join(e.data.held_out)}")
    z = "z-scored per neuron on training frames" if e.preprocess.z_score else "not z-scored"
    smooth = e.preprocess.smoothing
    lines.append(f"- traces: {z}" + (f", causally smoothed (a = {smooth})" if smooth else ""))
    return "\n".join(lines)


def _training(trained: Trained) -> str:
    e, stages = trained.run.tailored(), trained.run.stages()
    out = []
    for name in ("tokenizer", "transformer"):
        facts = stages.get(name, {})
        sizes = getattr(e, name)
        size = f"width {sizes.width}, {sizes.layers} layers"
        if "adapted" in facts:
            size += f"; adapted: {facts['text']}"
        elif "steps" in facts:
            size += (
                f"; {facts['steps']} steps, step {facts['used_step']} used, "
                f"{facts['seconds']:.0f} s"
            )
        out.append(f"- {name}: {size}")
    choice = stages.get("prepare", {}).get("choice", {})
    if e.alternative.rule != "never":
        out.append(f"- transformer of the experiment: {choice['variant']} ({choice['reason']})")
    out.append(f"- seed {e.seed}; configuration {config.fingerprint(e)}, in `model.json`")
    return "\n".join(out)


def _metrics(trained: Trained) -> str:
    """Test scores of the model and of every baseline, as the run found them."""
    try:
        found = rows.read(trained.run.path("evaluation", "rows.json"))
    except CalmError:
        return "The run was exported before its evaluation: no score is known."
    out = []
    for name in ("A", "B"):
        chosen = [r for r in found if r["protocol"] == name]
        known = [m for m in _METRICS if any(r["metric"] == m for r in chosen)]
        if chosen:
            out.append(
                f"Protocol {name} (docs/results.md), test part, mean over animals, one seed:\n\n"
                + rows.table(chosen, known).rstrip()
            )
    own = [r for r in found if r["protocol"] == "tokenizer" and r["animal"] is None]
    wanted = [r for r in own if r["metric"] in ("test_r2", "test_mse")]
    if wanted:
        out.append(
            "Tokenizer, test part: "
            + "; ".join(f"{r['method']} {r['metric']} {r['value']:.3f}" for r in wanted)
        )
    return "\n\n".join(out).rstrip() or "The run has no scores."


def _licence(name: str) -> str:
    """What the page of the data set says of its licence and citation."""
    import data

    for folder in data.__path__:
        page = Path(folder) / name / "README.md"
        if page.is_file():
            for paragraph in page.read_text().split("\n\n"):
                if "licence" in paragraph.lower():
                    return " ".join(paragraph.split())
    return "The data set's own licence and citation apply."


def _limits(trained: Trained) -> str:
    f = trained.run.experiment.forecasting
    return "\n".join(
        [
            "- Trained on the recordings above alone: another indicator, region, species or frame "
            "rate is outside of what was tested.",
            "- A session that did not train it takes the mean embeddings, and is scaled by its "
            "own frames; adapting the model to it does better.",
            f"- Scores are of {f.context} frames of context and {f.horizon} frames ahead, of one "
            "training run with one seed.",
            "- Not for clinical use.",
        ]
    )

