"""How figures look: one colour and one name per method everywhere, sizes, saving."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from calm_jax.files import replacing

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 4.2  # inches, one column
TRUE = "#111111"  # what was recorded
QUIET = "#767676"  # reference lines and notes
# Okabe and Ito's palette, told apart by all common forms of colour vision; lines differ
# in their dashes too, so that they survive a grey print.
_METHODS = {
    "calm": ("CalM", "#D55E00", "-"),
    "calm_network": ("CalM, network alone", "#E69F00", (0, (5, 1.5))),
    "calm_tokenizer": ("tokenizer", "#D55E00", "-"),
    "calm_adapted": ("CalM, adapted", "#D55E00", "-"),
    "calm_unadapted": ("CalM, as it was", "#E69F00", "--"),
    "calm_scratch": ("CalM, from scratch", "#882255", ":"),
    "shared_linear_others": ("shared linear, others", "#009E73", ":"),
    "calm_pooled": ("CalM, pooled head", "#D55E00", "-"),
    "calm_pooled_handed_on": ("CalM, pooled, handed on", "#E69F00", "--"),
    "calm_gated": ("CalM, gated head", "#882255", "-"),
    "calm_linear": ("CalM, linear head", "#CC79A7", "-"),
    "poyo": ("POYO+ read-out", "#332288", (0, (3, 1, 1, 1))),
    "ridge": ("GLM (ridge)", "#0072B2", "-."),
    "logistic": ("logistic regression", "#0072B2", "-."),
    "reduced_rank": ("reduced rank", "#56B4E9", (0, (2, 0.8))),
    "time_only": ("time alone", "#999933", (0, (2, 1))),
    "majority": ("majority", "#CC79A7", (0, (6, 1.5, 1, 1.5, 1, 1.5))),
    "chance": ("chance", "#767676", "--"),
    "shuffled": ("shuffled labels", "#44AA99", ":"),
    "copy_last": ("copy last", "#767676", ":"),
    "copy": ("copy last", "#767676", ":"),
    "mean": ("mean", "#CC79A7", (0, (6, 1.5, 1, 1.5, 1, 1.5))),
    "shared_linear": ("shared linear", "#009E73", "--"),
    "population_ridge": ("population ridge", "#0072B2", "-."),
    "population_change": ("population change", "#332288", (0, (1, 1))),
    "common_factors": ("common factors", "#44AA99", (0, (4, 1))),
    "autoregression": ("autoregression", "#56B4E9", (0, (2, 0.8))),
    "nlinear": ("NLinear", "#999933", (0, (2, 1))),
    "dlinear": ("DLinear", "#117733", (0, (6, 2))),
    "tcn": ("TCN", "#882255", (0, (5, 1, 1, 1))),
    "tsmixer": ("TSMixer", "#E69F00", (0, (8, 2))),
    "patchtst": ("PatchTST", "#661100", (0, (1, 1))),
    "itransformer": ("iTransformer", "#6699CC", (0, (5, 1, 1, 1, 1, 1))),
    "poco": ("POCO", "#332288", (0, (3, 1, 1, 1))),
}
_SPARE = ("#E69F00", "#332288", "#882255", "#44AA99", "#999933", "#661100")
_RC = {
    "font.family": "DejaVu Sans",  # ships with matplotlib: the same everywhere
    "font.size": 8.5,
    "axes.titlesize": 8.5,
    "axes.titlelocation": "left",
    "axes.labelsize": 8.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.linewidth": 0.7,
    "axes.edgecolor": "#444444",
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "legend.handlelength": 2.2,
    "lines.linewidth": 1.3,
    "text.color": "#111111",
    "figure.facecolor": "white",
    "savefig.facecolor": "white",
    "svg.hashsalt": "calm_jax",  # the same data give the same file
    "svg.fonttype": "path",
}


def own(method: str) -> bool:
    """Whether a method is one of the package's own models."""
    return method.startswith(("calm", "poyo"))


def label(method: str) -> str:
    """The name of a method as a reader sees it."""
    return _METHODS[method][0] if method in _METHODS else method.replace("_", " ")


def colour(method: str) -> str:
    """The colour of a method: the same in every figure and every run."""
    if method in _METHODS:
        return _METHODS[method][1]
    return _SPARE[sum(method.encode()) % len(_SPARE)]


def line(method: str) -> dict:
    """Keyword arguments of `Axes.plot` for a method."""
    dashes = _METHODS[method][2] if method in _METHODS else (0, (5, 1))
    width = 2.0 if own(method) else 1.2
    order = 3 if own(method) else 2
    return {"color": colour(method), "linestyle": dashes, "linewidth": width, "zorder": order}


@contextmanager
def look() -> Iterator[None]:
    """The look of the report, for everything drawn and saved inside."""
    import matplotlib

    with matplotlib.rc_context(_RC):
        yield


def panels(count: int = 1, height: float = 2.6, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure with `count` axes above each other, drawn without a window system.

    Args:
      height: inches per axis.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height * count), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(count, 1, squeeze=False)
    return figure, list(axes[:, 0])


def save(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Writes `name`.png (250 dots per inch) and `name`.svg; gives their paths.

    Raises:
      RunError: when the disk is full or the folder cannot be written to.
    """
    engine = figure.get_layout_engine()
    if engine is not None:  # laid out once for both files: most of the time goes there
        engine.execute(figure)
        figure.set_layout_engine("none")
    out = []
    for suffix, options in ((".png", {"dpi": 250}), (".svg", {"metadata": {"Date": None}})):
        path = Path(folder) / f"{name}{suffix}"
        with replacing(path) as part:
            figure.savefig(part, **options)
        out.append(path)
    return out
