"""The estimators saved by a release, which every later one must load.

`python -m tests.estimators.releases` writes those of this version, once, at its release; they
are committed and never written again.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

FOLDER = Path(__file__).parent / "releases"
SIZES = dict(
    width=8, layers=1, codes=8, tokenizer_steps=60, steps=40, context=16, horizon=8, random_state=0
)


def traces(frames: int = 400, neurons: int = 6, seed: int = 0) -> np.ndarray:
    """(frames, neurons) slow random traces."""
    rng = np.random.default_rng(seed)
    noise, out = rng.normal(size=(frames, neurons)), np.zeros((frames, neurons))
    for t in range(1, frames):
        out[t] = 0.9 * out[t - 1] + noise[t]
    return out


def behavior(x: np.ndarray) -> np.ndarray:
    """(T, 2) functions of the traces."""
    weights = np.where(np.arange(x.shape[1]) % 2, -1.0, 1.0)
    return np.stack([x @ weights, x.sum(1)], 1)


def found(estimator) -> np.ndarray:
    """What a saved estimator says of frames that it was not fitted on."""
    x = traces(seed=0)[300:]
    if hasattr(estimator, "transform"):
        return estimator.transform(x)
    if hasattr(estimator, "targets_"):
        return estimator.predict(x)
    return estimator.predict(x, 12)


def main() -> None:
    """Trains, saves and notes what the saved ones say."""
    import calm_jax
    from calm_jax import compilation

    compilation.prepare("quick")
    compilation.enable()
    from calm_jax.estimators import CalMDecoder, CalMEmbedding, CalMForecaster

    place = FOLDER / calm_jax.__version__
    if place.exists():
        raise SystemExit(f"{place} is there already, and a release is never written again")
    x = traces()
    forecaster = CalMForecaster(**SIZES).fit(x[:300])
    run = forecaster.trained_
    decoder = CalMDecoder(
        run=run, head="gated", decoder_steps=80, rank=4, learning_rate=0.02, random_state=0
    )
    y = behavior(x)[:300]
    made = {
        "forecaster": forecaster,
        "embedding": CalMEmbedding(run=run, components=3).fit(x[:300]),
        "decoder": decoder.fit(x[:300], y),
        "pooled": CalMDecoder(run=run, rank=4, random_state=0).fit(x[:300], y),
    }
    expected = {}
    for name, estimator in made.items():
        estimator.save(place / name)
        expected[name] = np.asarray(found(estimator), np.float32)
    labels = CalMDecoder(
        run=run, head="gated", decoder_steps=80, rank=4, learning_rate=0.02, random_state=0
    )
    labels.fit(x[:300], np.where(y[:, 0] > 0, "run", "rest")).save(place / "labels")
    expected["labels"] = labels.predict_proba(x[300:]).astype(np.float32)
    np.savez(place / "expected.npz", **expected)


if __name__ == "__main__":
    main()
