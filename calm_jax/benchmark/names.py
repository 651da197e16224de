"""The names a user may give; no heavy imports, so that --help answers at once."""

from __future__ import annotations

BASELINES = (
    "copy_last",
    "mean",
    "autoregression",
    "shared_linear",
    "population_ridge",
    "population_change",
    "common_factors",
    "nlinear",
    "dlinear",
    "tcn",
    "tsmixer",
    "poco",
)
EXTRAS = ("patchtst", "itransformer")  # need an extra to be installed
CALM = "calm"
SETS = {
    "all": (*BASELINES, *EXTRAS, CALM),
    "baselines": (*BASELINES, *EXTRAS),
    "closed_form": BASELINES[:5],
}
