"""Reading what an evaluation fitted: quantiles, weights of the forecast."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.errors import RunError
from calm_jax.recordings.formats.interchange import DAMAGE


def fitted_file(path: Path, parse: Callable[[dict[str, np.ndarray]], Any]) -> Any:
    """What `parse` makes of a file of an evaluation; None when there is no such file.

    Raises:
      RunError: when the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            return parse({k: file[k] for k in file.files})
    except FileNotFoundError:
        return None
    except DAMAGE as e:
        raise RunError(
            "the file is damaged",
            where=path,
            found=str(e),
            remedy="Remove it; `calm-jax evaluate RUN` makes it again.",
        ) from e
