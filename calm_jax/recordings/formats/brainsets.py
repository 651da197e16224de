"""Processed sessions of brainsets: HDF5 as the temporaldata package writes it.

Every group says in its attribute `object` what it is: RegularTimeSeries (`sampling_rate`,
`domain`), IrregularTimeSeries (`timestamps`), Interval (`start`, `end`), ArrayDict. The
neurons are the ArrayDict `units` (up to 0.2.0) or `rois` (later), the traces a (T, N) array
of a time series; everything else is found by its type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import h5py
import numpy as np

from calm_jax.errors import RecordingError
from calm_jax.recordings.formats.allen import cell_line
from calm_jax.recordings.formats.hdf5 import (
    attribute_number,
    attribute_text,
    children,
    get,
    opened,
    read_array,
    read_traces,
    walk,
)
from calm_jax.recordings.formats.interchange import HDF5_MAGIC, magic
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.peek import Peek
from calm_jax.recordings.session import Channel, Intervals, NeuronTable, Session, Trials

OPTIONS = {"series": "the array that holds the traces, such as calcium_traces/df_over_f"}
SERIES = ("RegularTimeSeries", "IrregularTimeSeries")
NEURONS = ("rois", "units")
DOMAINS = ("domain", "train_domain", "valid_domain", "test_domain")


@dataclasses.dataclass(frozen=True)
class _Traces:
    """The array of the traces and its clock."""

    path: str
    data: h5py.Dataset
    start: float  # s
    rate: float | None  # Hz; None where there are time stamps
    times: np.ndarray | None  # (T,) s


def recognises(path: str | Path) -> bool:
    """True for an HDF5 file that temporaldata wrote."""
    path = Path(path)
    if not path.is_file() or magic(path) != HDF5_MAGIC:
        return False
    try:
        with opened(path) as file:
            if attribute_text(file, "object") == "Data":
                return True
            kinds = {attribute_text(item, "object") for _, item in children(file)}
            return bool(kinds & set(SERIES)) and any(get(file, n) is not None for n in NEURONS)
    except RecordingError:
        return False


def read_brainsets(path: str | Path, series: str | None = None) -> Session:
    """Reads one processed session.

    Intervals keep their columns (`orientation`, ...); other time series become behaviour on
    their own clocks; the table of neurons keeps its columns.

    Args:
      series: the array of the traces; needed only where several could be.

    Raises:
      RecordingError: naming the file and the field; for several candidates it lists them.
    """
    path = Path(path)
    with opened(path) as file:
        notes: list[str] = []
        chosen = _find(file, series)
        values = read_traces(chosen.data, chosen.path)
        valid = None
        missing = ~np.isfinite(values)
        if missing.any():
            valid = ~missing
            notes.append(f"{missing.mean():.2%} of the traces are NaN: marked as missing")
        del missing
        times = chosen.times
        if times is None and chosen.start != 0:
            times = chosen.start + np.arange(values.shape[0]) / chosen.rate
        animal, session, told = _ids(file)
        intervals = _intervals(file, notes)
        made = Session(
            traces=values,
            rate=chosen.rate,
            timestamps=times,
            valid=valid,
            intervals=intervals,
            behavior=_behavior(file, chosen.path, notes),
            neurons=_neurons(file, values.shape[1], notes),
            unit=_unit(chosen.path),
            animal=animal,
            session=session or path.stem,
            notes=(*told, f"traces of {chosen.path}", *notes),
        )
        if "trials" not in intervals:
            return made
        return _with_trials(made, intervals["trials"])


def peek_brainsets(path: str | Path, series: str | None = None) -> Peek:
    """What `read_brainsets` would give, from headers.

    Raises:
      RecordingError: naming the file and the field.
    """
    path = Path(path)
    with opened(path) as file:
        chosen = _find(file, series)
        animal, session, told = _ids(file)
        found = {name: get(group, "start") for name, group in _groups(file, ("Interval",))}
        rate = chosen.rate
        if rate is None:
            rate = 1.0 / float(np.median(np.diff(chosen.times)))
        return Peek(
            session=session or path.stem,
            animal=animal,
            unit=_unit(chosen.path),
            neurons=int(chosen.data.shape[1]),
            frames=int(chosen.data.shape[0]),
            rate=rate,
            behavior=tuple(
                _channel_name(name, key, keys)
                for name, group in _groups(file, SERIES)
                for keys in [list(_arrays(group))]
                for key in keys
                if f"{name}/{key}" != chosen.path
            ),
            intervals={
                k: int(v.shape[0])
                for k, v in found.items()
                if isinstance(v, h5py.Dataset) and v.ndim == 1
            },
            notes=(*told, f"traces of {chosen.path}"),
        )


# --- the traces -------------------------------------------------------------------


def _find(file: h5py.File, series: str | None) -> _Traces:
    table = _neuron_group(file)
    count = None if table is None else _rows(table)
    candidates: dict[str, tuple[h5py.Group, h5py.Dataset]] = {}
    shapes: list[str] = []
    for name, group in _groups(file, SERIES):
        for key, data in _arrays(group).items():
            if data.ndim == 2 and data.dtype.kind in "fiu":
                shapes.append(f"{name}/{key} {data.shape}")
                if count is None or data.shape[1] == count:
                    candidates[f"{name}/{key}"] = group, data
    listed = ", ".join(candidates) or ", ".join(shapes) or "no time series with two axes"
    if series is not None:
        wanted = [p for p in candidates if str(series).strip("/") in (p, p.rpartition("/")[0])]
    else:
        wanted = list(candidates)
    if len(wanted) != 1:
        what = "several arrays could be the traces" if len(wanted) > 1 else "no traces"
        if series is not None:
            what = f"{what} under the name {series!r}"
        raise RecordingError(
            what,
            where="series",
            found=listed,
            expected="one (frames, neurons) array" + (f" of {count} neurons" if count else ""),
            remedy="Name it: --read series=GROUP/ARRAY." if candidates else None,
        )
    group, data = candidates[wanted[0]]
    return _clock(wanted[0], group, data)


def _clock(path: str, group: h5py.Group, data: h5py.Dataset) -> _Traces:
    where = path.rpartition("/")[0]
    stamps = get(group, "timestamps")
    if stamps is not None:
        times = read_array(stamps, f"{where}/timestamps", ndim=1, kinds="fiu").astype(np.float64)
        if times.size != data.shape[0] or times.size < 2:
            raise RecordingError(
                "traces and time stamps do not fit",
                where=path,
                found=f"shape {data.shape} beside {times.size} time stamps",
                expected="(frames, neurons)",
            )
        return _Traces(path, data, 0.0, None, times)
    return _Traces(path, data, *_regular(group, where), None)


def _regular(group: h5py.Group, where: str) -> tuple[float, float]:
    """Start (s) and rate (Hz) of a RegularTimeSeries."""
    rate = attribute_number(group, "sampling_rate")
    if rate is None:
        data = get(group, "sampling_rate")
        if isinstance(data, h5py.Dataset):
            rate = float(read_array(data, f"{where}/sampling_rate", kinds="fiu").reshape(-1)[0])
    if rate is None or not np.isfinite(rate) or rate <= 0:
        raise RecordingError(
            "no frame rate",
            where=f"{where}/sampling_rate",
            found=rate,
            expected="samples per second, or an array `timestamps`",
        )
    start = get(group, "domain/start")
    first = np.zeros(1)
    if start is not None:
        first = read_array(start, f"{where}/domain/start", kinds="fiu").reshape(-1)
    return (float(first[0]) if first.size and np.isfinite(first[0]) else 0.0), rate


def _unit(path: str) -> str:
    name = path.rpartition("/")[2].lower()
    return "dF/F" if name in ("df_over_f", "dff", "df_f", "dfof") else "a.u."


# --- everything else ----------------------------------------------------------------


def _groups(file: h5py.File, kinds: tuple[str, ...]) -> Iterator[tuple[str, h5py.Group]]:
    """Path without the leading slash, and group, of every object of some kinds but domains."""
    for path, item in walk(file):
        name = path.strip("/")
        if not isinstance(item, h5py.Group) or name.rpartition("/")[2] in DOMAINS:
            continue
        if attribute_text(item, "object").removeprefix("Lazy") in kinds:
            yield name, item


def _arrays(group: h5py.Group) -> dict[str, h5py.Dataset]:
    """The arrays of a time series beside its clock."""
    return {
        name: item
        for name, item in children(group)
        if isinstance(item, h5py.Dataset) and item.shape and name not in ("timestamps",)
    }


def _neuron_group(file: h5py.File) -> h5py.Group | None:
    for name in NEURONS:
        group = get(file, name)
        if isinstance(group, h5py.Group):
            return group
    return None


def _rows(table: h5py.Group) -> int | None:
    lengths = [d.shape[0] for _, d in children(table) if isinstance(d, h5py.Dataset) and d.shape]
    return max(set(lengths), key=lengths.count) if lengths else None


def _neurons(file: h5py.File, count: int, notes: list[str]) -> NeuronTable:
    table = _neuron_group(file)
    columns: dict[str, np.ndarray] = {}
    if table is None:
        notes.append("no table of neurons: they are numbered")
    else:
        at = (table.name or "").strip("/")
        for name, data in children(table):
            if not isinstance(data, h5py.Dataset) or data.dtype.kind not in "fiubSUO":
                continue
            if data.ndim != 1 or data.shape[0] != count:
                notes.append(f"{at}/{name} of shape {data.shape} was left out")
                continue
            columns[name] = read_array(data, f"{at}/{name}", ndim=1, kinds="fiubU")
    ids = columns.pop("id", None)
    if ids is None or np.unique(ids.astype(str)).size != count:
        if ids is not None:
            notes.append("neuron ids that repeat were replaced by numbers")
        ids = np.arange(count)
    if "cell_line" not in columns:
        line = _line(file)
        if line:
            columns["cell_line"] = np.full(count, line)
    return NeuronTable(ids.astype(str), columns)


def _line(file: h5py.File) -> str:
    """The Cre line, from the description of subject or session."""
    for group in ("subject", "session"):
        for key in ("cre_line", "genotype"):
            found = _attribute(file, group, key)
            if found and "cre" in found.lower():
                return cell_line(found)
    return ""


def _attribute(file: h5py.File, group: str, key: str) -> str:
    item = get(file, group)
    return "" if item is None else attribute_text(item, key)


def _ids(file: h5py.File) -> tuple[str, str, list[str]]:
    """Animal, session and the notes on where the recording comes from."""
    brainset = _attribute(file, "brainset", "id")
    genotype = _attribute(file, "subject", "genotype")
    told = [f"brainset {brainset}"] if brainset else []
    told += [f"genotype {genotype}"] if genotype else []
    animal = _attribute(file, "subject", "id").strip() or "unknown"
    return animal, _attribute(file, "session", "id").strip(), told


def _intervals(file: h5py.File, notes: list[str]) -> dict[str, Intervals]:
    out = {}
    for path, group in _groups(file, ("Interval",)):
        arrays = {n: d for n, d in children(group) if isinstance(d, h5py.Dataset)}
        if not {"start", "end"} <= set(arrays):
            notes.append(f"{path} has no start and end; left out")
            continue
        start, stop = (
            read_array(arrays.pop(k), f"{path}/{k}", ndim=1, kinds="fiu") for k in ("start", "end")
        )
        columns = {}
        for name, data in arrays.items():
            if data.shape[:1] == start.shape and data.dtype.kind in "fiubSUO":
                columns[name] = read_array(data, f"{path}/{name}", kinds="fiubU")
        with located(path):
            out[path.replace("/", ".")] = Intervals(start, stop, columns)
    return out


def _with_trials(session: Session, trials: Intervals) -> Session:
    """Trials of the file as frame ranges too, where they are sorted and do not overlap."""
    start = np.searchsorted(session.times, trials.start - 1e-9)
    stop = np.searchsorted(session.times, trials.stop - 1e-9)
    keep = stop > start
    start, stop = start[keep], stop[keep]
    if (start[1:] < stop[:-1]).any():
        note = "trials overlap or are out of order: kept as intervals only"
        return session.replace(notes=(*session.notes, note))
    columns = {k: v[keep] for k, v in trials.columns.items()}
    return session.replace(trials=Trials(start, stop, columns))


def _channel_name(group: str, key: str, keys: list[str]) -> str:
    return (group if len(keys) == 1 else f"{group}.{key}").replace("/", ".")


def _behavior(file: h5py.File, traces: str, notes: list[str]) -> dict[str, Channel]:
    """Every other time series on its own clock; what is no channel is left out, and said so."""
    out = {}
    for path, group in _groups(file, SERIES):
        arrays = _arrays(group)
        for key, data in arrays.items():
            if f"{path}/{key}" == traces:
                continue
            try:
                values = read_array(data, f"{path}/{key}", kinds="fiub", largest=4 << 30)
                stamps = get(group, "timestamps")
                if stamps is not None:
                    times = read_array(stamps, f"{path}/timestamps", ndim=1, kinds="fiu")
                else:
                    first, rate = _regular(group, path)
                    times = first + np.arange(values.shape[0]) / rate
                with located(f"{path}/{key}"):
                    out[_channel_name(path, key, list(arrays))] = Channel(values, times=times)
            except RecordingError as e:
                notes.append(f"left out: {e}")
    return out
