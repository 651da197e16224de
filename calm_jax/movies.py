"""The frames of a movie that was shown, at the size of a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from calm_jax import config
from calm_jax.errors import ConfigError, RecordingError
from calm_jax.recordings.formats import allen
from calm_jax.recordings.images import resized
from calm_jax.simulate import visual


def movie_frames(
    data: config.Data, name: str, height: int, width: int, *, file: str | None = None
) -> np.ndarray:
    """(F, height, width) float32 in [0, 1], the frames of movie `name`.

    From `file` where one is named: an array (F, H, W) of uint8 (.npy), or a Brain Observatory
    file with the movie's images (`recordings.formats.allen.movie_template`). Else from the
    simulation (`simulated_visual`), or from the first file of the source that has them.

    Raises:
      ConfigError: when the data set has no movie.
      RecordingError: when a file has no such images.
    """
    if file is not None:
        return resized(_images(Path(file), name), height, width)
    if data.name == "simulated_visual":
        if name != visual.MOVIE:
            raise ConfigError(
                f"no movie {name!r}", where="movie.name", expected=visual.MOVIE
            )
        return resized(visual.movie(data.visual), height, width)
    if data.source is None:
        raise ConfigError(
            "nothing says where the frames of the movie are",
            where="movie.file",
            remedy="Name a Brain Observatory file, or an array (frames, height, width) as .npy.",
        )
    source, error = Path(data.source), None
    for path in [source] if source.is_file() else sorted(source.rglob("*.nwb")):
        try:
            if allen.recognises(path):
                return resized(allen.movie_template(path, name), height, width)
        except RecordingError as e:
            error = e
    raise error or ConfigError(
        f"no file with the frames of {name!r}",
        where=str(source),
        remedy="Name one with movie.file.",
    )


def _images(path: Path, name: str) -> np.ndarray:
    if path.suffix != ".npy":
        return allen.movie_template(path, name)
    try:
        images = np.load(path, allow_pickle=False, mmap_mode="r")
    except FileNotFoundError:
        raise RecordingError("no such file", where=path) from None
    except (OSError, ValueError, EOFError) as e:
        raise RecordingError("not an array of numpy", where=path, found=str(e)[:120]) from e
    if images.ndim != 3 or images.dtype != np.uint8 or 0 in images.shape:
        raise RecordingError(
            "not grey-level images",
            where=path,
            found=f"{images.dtype} of shape {images.shape}",
            expected="uint8 (frames, height, width)",
        )
    return images
