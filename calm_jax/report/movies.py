"""The contact sheet of a movie: what was shown, what was reconstructed, what retrieval gives."""

from __future__ import annotations

from typing import TYPE_CHECKING

from calm_jax.report import style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from calm_jax.movie_evaluation import Sheet

_TITLES = {
    "repeat_holdout": "repeats held out: every frame was seen in training",
    "frame_block_holdout": "blocks of frames held out: no frame was seen in training",
}


def contact_sheet(sheet: Sheet) -> Figure:
    """Rows: the true frame, the reconstruction, the training frame of nearest activity.

    One column per example, with the number of the movie frame above and SSIM below each
    picture; grey levels from 0 to 1 everywhere. Save it with `style.save`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    count = len(sheet.frame)
    ratio = sheet.true.shape[1] / sheet.true.shape[2]
    wide = min(1.35, 11.0 / max(count, 1))
    size = (wide * count + 0.9, 3 * (wide * ratio + 0.24) + 0.55)
    with style.look():
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots(3, count, squeeze=False)
        rows = (
            ("shown", sheet.true), ("reconstructed", sheet.reconstructed),
            ("nearest activity", sheet.nearest),
        )  # fmt: skip
        for r, (name, images) in enumerate(rows):
            for c in range(count):
                ax = axes[r, c]
                ax.imshow(images[c], cmap="gray", vmin=0, vmax=1, interpolation="nearest")
                ax.set_xticks([])
                ax.set_yticks([])
                for side in ax.spines.values():
                    side.set_visible(False)
                if r == 0:
                    ax.set_title(f"frame {sheet.frame[c]}", fontsize=7, loc="center", pad=2)
                else:
                    more = f", frame {sheet.nearest_frame[c]}" if r == 2 else ""
                    ax.set_xlabel(f"SSIM {sheet.ssim[c, r - 1]:.2f}{more}", fontsize=6.5,
                                  labelpad=1.5)  # fmt: skip
                if c == 0:
                    ax.set_ylabel(name, fontsize=7.5)
        figure.suptitle(_TITLES.get(sheet.holdout, sheet.holdout), fontsize=8.5)
    return figure
