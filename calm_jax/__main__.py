"""`python -m calm_jax` is `calm-jax`."""

import sys

from calm_jax.cli import main

if __name__ == "__main__":
    sys.exit(main())
