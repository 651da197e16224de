"""Results written into a copy of an NWB 2 file: predictions and embeddings.

They go into the processing module `calm_jax`, which the reader passes over. Needs pynwb.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.files import replacing
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.nwb import recognises
from calm_jax.recordings.formats.nwb_tables import IDS
from calm_jax.recordings.nwb_writer import check_pynwb, plain, pynwb_errors

MODULE = "calm_jax"


def check(path_in: str | Path, path_out: str | Path) -> None:
    """Whether results can be written into a copy of `path_in` at `path_out`.

    Raises:
      RecordingError: when `path_in` is no NWB 2 file, `path_out` is the same file or has another
        suffix than `.nwb`, or pynwb is missing.
    """
    check_pynwb()
    path_in, path_out = Path(path_in), Path(path_out)
    if not recognises(path_in):
        raise RecordingError("not an NWB 2 file: results can only be added to one", where=path_in)
    if path_out.exists() and os.path.samefile(path_in, path_out):
        raise RecordingError(
            "the original is never changed", where=path_out, remedy="Name another file to write."
        )
    if path_out.suffix != ".nwb":
        raise RecordingError("not the name of an NWB file", where=path_out, expected="FILE.nwb")


def add_predictions(
    path_in: str | Path,
    path_out: str | Path,
    predictions: np.ndarray,
    times: np.ndarray,
    *,
    neurons: np.ndarray,
    unit: str,
    description: str,
    quantiles: np.ndarray | None = None,
    levels: tuple[float, ...] = (),
    name: str = "forecast",
) -> None:
    """Writes predicted traces into the module `calm_jax` of a copy of an NWB file.

    The table `name` has one row per neuron: `neuron_id`, `prediction` (H,) and a column
    `quantile_<percent>` (H,) per level; the series `<name>_times` has the H time stamps.

    Args:
      path_in: an NWB 2 file; it is never changed. path_out: the copy.
      predictions: (H, N) in `unit`. times: (H,) seconds on the clock of the file.
      neurons: (N,) ids. quantiles: (L, H, N) at `levels` (L,).

    Raises:
      RecordingError: when shapes do not fit, the input is no NWB 2 file, or has the name already.
    """
    check_pynwb()
    predictions, times = np.asarray(predictions, np.float32), np.asarray(times, np.float64)
    frames, count = predictions.shape if predictions.ndim == 2 else (-1, -1)
    if (frames, count) != (times.size, len(neurons)):
        raise RecordingError(
            "predictions, times and neurons do not fit together",
            where=name,
            found=f"{predictions.shape}, {times.shape} and {len(neurons)} neurons",
            expected="(frames, neurons), (frames,) and one id per neuron",
        )
    columns = {"prediction": (f"predicted traces ({unit}), at {name}_times", predictions.T)}
    if quantiles is not None:
        quantiles = np.asarray(quantiles, np.float32)
        if quantiles.shape != (len(levels), frames, count):
            raise RecordingError(
                "quantiles do not fit the predictions",
                where=name,
                found=f"shape {quantiles.shape} for {len(levels)} levels",
                expected=(len(levels), frames, count),
            )
        for level, values in zip(levels, quantiles):
            text = f"{level:.0%} quantile of the predictions ({unit})"
            columns[f"quantile_{level * 100:g}"] = (text, values.T)

    def add(pynwb: Any, module: Any) -> None:
        module.add(_neuron_table(pynwb, name, description, neurons, columns))
        module.add(
            pynwb.TimeSeries(
                name=f"{name}_times",
                description=f"index of each predicted frame of {name}, at its time",
                data=np.arange(frames),
                timestamps=times,
                unit="frame",
            )
        )

    _add(path_in, path_out, name, add)


def add_embeddings(
    path_in: str | Path,
    path_out: str | Path,
    embeddings: np.ndarray,
    *,
    description: str,
    neurons: np.ndarray | None = None,
    times: np.ndarray | None = None,
    name: str = "embeddings",
) -> None:
    """Writes embeddings of neurons or of moments into a copy of an NWB file.

    With `neurons` a table of the module `calm_jax` with one row per neuron: `neuron_id`,
    `embedding` (D,). With `times` a TimeSeries (T, D).

    Args:
      path_in: an NWB 2 file; it is never changed. path_out: the copy.
      embeddings: (N, D) beside `neurons` (N,), or (T, D) beside `times` (T,) in seconds.

    Raises:
      RecordingError: as `add_predictions`.
    """
    check_pynwb()
    embeddings = np.asarray(embeddings, np.float32)
    beside = neurons if times is None else times
    if (
        (neurons is None) == (times is None)
        or embeddings.ndim != 2
        or len(beside) != len(embeddings)
    ):
        raise RecordingError(
            "embeddings need one neuron or one time per row",
            where=name,
            found=f"shape {embeddings.shape}",
            expected="(N, D) and N neurons, or (T, D) and T times",
        )

    def add(pynwb: Any, module: Any) -> None:
        if times is None:
            column = {"embedding": ("embedding of the neuron", embeddings)}
            module.add(_neuron_table(pynwb, name, description, neurons, column))
        else:
            module.add(
                pynwb.TimeSeries(
                    name=name, description=description, data=embeddings, unit="a.u.",
                    timestamps=np.asarray(times, np.float64),
                )
            )  # fmt: skip

    _add(path_in, path_out, name, add)


# --- results into a copy -------------------------------------------------------------


def _add(path_in: str | Path, path_out: str | Path, name: str, add: Any) -> None:
    check(path_in, path_out)
    pynwb = check_pynwb()
    path_in, path_out = Path(path_in), Path(path_out)
    with located(path_out), replacing(path_out) as part:
        shutil.copyfile(path_in, part)
        with pynwb_errors(), pynwb.NWBHDF5IO(str(part), "a") as io:
            file = io.read()
            if MODULE in file.processing:
                module = file.processing[MODULE]
            else:
                module = file.create_processing_module(MODULE, "results of calm_jax")
            if name in module.data_interfaces:
                raise RecordingError(
                    f"the file has {name!r} already", where=f"processing/{MODULE}",
                    remedy="Give another name.",
                )  # fmt: skip
            add(pynwb, module)
            io.write(file)


def _neuron_table(
    pynwb: Any, name: str, description: str, neurons: Any, columns: Mapping[str, Any]
) -> Any:
    from hdmf.common import DynamicTable, VectorData

    made = [VectorData(name=IDS, description="id of the neuron", data=plain(np.asarray(neurons)))]
    for column, (text, values) in columns.items():
        made.append(VectorData(name=column, description=text, data=np.ascontiguousarray(values)))
    return DynamicTable(name=name, description=description, columns=made)
