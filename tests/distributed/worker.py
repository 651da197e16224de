"""A process of its own that trains the toy task: folder, output, steps, [step of a SIGTERM]."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path


def main(folder: str, out: str, steps: str, kill_at: str = "-1") -> None:
    from calm_jax.training.mesh import join_processes

    join_processes()
    import jax
    import numpy as np

    from calm_jax import compilation
    from calm_jax.training.loop import train
    from tests.training.toy import TRAINING, Toy

    compilation.enable()

    class Killed(Toy):
        def event(self, step):
            if step == int(kill_at):
                os.kill(os.getpid(), signal.SIGTERM)
            return super().event(step)

    result = train(Killed(noise=0.0), TRAINING, Path(folder), seed=0, steps=int(steps))
    np.savez(
        f"{out}-{jax.process_index()}.npz",
        devices=jax.device_count(),
        loss=result.best_metrics["loss"],
        **result.params,
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
