"""Numbers of minutes as a command line names them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from calm_jax.errors import ConfigError


def parse_minutes(words: Sequence[str]) -> list[float | None]:
    """`1 2.5 all` -> [1.0, 2.5, None], each once, all last.

    Raises:
      ConfigError: for what is neither a positive number nor `all`.
    """
    out: list[float | None] = []
    for word in words:
        try:
            value = None if word == "all" else float(word)
            if value is not None and not (0 < value < 1e6):
                raise ValueError
        except ValueError:
            raise ConfigError(
                "not a number of minutes",
                where="--minutes",
                found=repr(word),
                expected="positive numbers, or all",
            ) from None
        if value not in out:
            out.append(value)
    return sorted(out, key=lambda m: math.inf if m is None else m)
