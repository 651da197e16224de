"""The names a user may give; no heavy imports, so that --help answers at once."""

from __future__ import annotations

BASELINES = (
    "copy_last",
    "mean",
    "autoregression",
    "shared_linear",
    "population_ridge",
    "nlinear",
    "dlinear",
    "tcn",
    "tsmixer",
    "poco",
)
CALM = "calm"
SETS = {
    "all": (*BASELINES, CALM),
    "baselines": BASELINES,
    "closed_form": BASELINES[:5],
}
