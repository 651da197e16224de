"""Writing a Session as an NWB 2 file; `nwb_results` adds results to a copy of a file.

Needs pynwb (`pip install calm_jax[nwb]`); reading does not.
"""

from __future__ import annotations

import contextlib
import datetime
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from calm_jax.errors import CalmError, RecordingError
from calm_jax.files import replacing
from calm_jax.recordings.formats.located import located
from calm_jax.recordings.formats.nwb_behavior import CATEGORICAL
from calm_jax.recordings.formats.nwb_series import AXES
from calm_jax.recordings.formats.nwb_tables import IDS
from calm_jax.recordings.session import Channel, Intervals, Session

UNKNOWN_START = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
# Columns that NWB gives a meaning of its own.
TAKEN = {
    "roi": ("id", "image_mask", "pixel_mask", "voxel_mask", IDS),
    "time": ("id", "start_time", "stop_time", "tags", "timeseries"),
}
ROWS = 1 << 22  # values written at a time


def check_pynwb() -> Any:
    """pynwb; an error that names the remedy where it is not installed."""
    try:
        import pynwb
    except ImportError as e:
        raise RecordingError(
            "writing NWB needs pynwb", found=str(e), remedy="pip install 'calm_jax[nwb]'"
        ) from e
    return pynwb


def write_nwb(
    session: Session,
    path: str | Path,
    *,
    start: datetime.datetime | None = None,
    subject: Mapping[str, str] | None = None,
) -> None:
    """Writes a Session as an NWB 2 file, whole or not at all; `read` gives it back.

    Missing samples become NaN. Traces in dF/F go to DfOverF, others to Fluorescence. What a
    Session does not know is written as unknown: indicator, location, age ("P0D/", any), sex
    ("U"). A rate that contradicts the time stamps is not kept.

    Args:
      path: ends in `.nwb`.
      start: when the recording began, with a time zone; default 1970, as unknown.
      subject: of `pynwb.file.Subject`, such as `{"species": "Mus musculus", "age": "P90D"}`.

    Raises:
      RecordingError: for names that NWB cannot hold, or without pynwb.
      RunError: when the disk is full or the folder is not writable.
    """
    pynwb = check_pynwb()
    path = Path(path)
    if path.suffix != ".nwb":
        raise RecordingError("not the name of an NWB file", where=path, expected="FILE.nwb")
    with located(path), replacing(path) as part, pynwb_errors():
        file = _file(pynwb, session, start, subject or {})
        series = _traces(pynwb, file, session)
        _behavior(pynwb, file, session, series)
        _intervals(pynwb, file, session)
        with pynwb.NWBHDF5IO(str(part), "w") as io:
            io.write(file)


@contextlib.contextmanager
def pynwb_errors() -> Iterator[None]:
    """What pynwb refuses, as one line."""
    try:
        yield
    except (CalmError, OSError):  # the disk: told by `replacing`
        raise
    except Exception as e:  # pynwb and hdmf raise whatever they meet
        raise RecordingError("pynwb cannot write it", found=str(e) or type(e).__name__) from e


# --- a Session as a file ---------------------------------------------------------------


def _file(pynwb: Any, s: Session, start: Any, subject: Mapping[str, str]) -> Any:
    about = {"age": "P0D/", "sex": "U", "description": "unknown"} | dict(subject)
    unknown = "" if start is not None else ", start time unknown"
    return pynwb.NWBFile(
        session_description=f"calcium imaging, {s.n_neurons} neurons{unknown}",
        identifier=str(uuid.uuid5(uuid.NAMESPACE_OID, f"{s.animal}\0{s.session}")),
        session_start_time=start or UNKNOWN_START,
        session_id=s.session,
        notes="\n".join(s.notes) or None,
        subject=pynwb.file.Subject(subject_id=s.animal, **about),
    )


def _traces(pynwb: Any, file: Any, s: Session) -> Any:
    """Adds ROI table and traces; returns the series."""
    from hdmf.common import DynamicTableRegion
    from hdmf.data_utils import GenericDataChunkIterator

    class Blocks(GenericDataChunkIterator):
        """Rows of the traces with NaN where they are missing; never a copy of all."""

        def _get_data(self, selection: tuple[slice, ...]) -> np.ndarray:
            block = s.traces[selection]
            return block if s.valid is None else np.where(s.mask[selection], block, np.nan)

        def _get_maxshape(self) -> tuple[int, int]:
            return s.traces.shape

        def _get_dtype(self) -> np.dtype:
            return s.traces.dtype

    plane = file.create_imaging_plane(
        name="ImagingPlane",
        description="unknown",
        optical_channel=pynwb.ophys.OpticalChannel(
            name="channel", description="unknown", emission_lambda=float("nan")
        ),
        device=file.create_device("microscope", description="unknown"),
        excitation_lambda=float("nan"),
        indicator="unknown",
        location="unknown",
        imaging_rate=s.rate,
    )
    ids = s.neurons.id
    whole = all(i.isascii() and i.isdigit() and str(int(i)) == i and len(i) < 10 for i in ids)
    columns = dict(s.neurons.columns)
    _free(columns, TAKEN["roi"], "neuron")
    if not whole:
        columns[IDS] = ids
    table = pynwb.ophys.PlaneSegmentation(
        description="the neurons of the recording",
        imaging_plane=plane,
        name="PlaneSegmentation",
        id=[int(i) for i in ids] if whole else list(range(ids.size)),
        columns=[*_no_pixels(ids.size), *_vectors(columns, "neuron")],
    )
    module = file.create_processing_module("ophys", "calcium traces")
    module.add(pynwb.ophys.ImageSegmentation(plane_segmentations=table))
    width = max(1, s.n_neurons)
    series = pynwb.ophys.RoiResponseSeries(
        name="RoiResponseSeries",
        description="traces of the neurons; NaN where missing",
        comments=AXES,
        data=Blocks(
            buffer_shape=(min(s.n_frames, max(1, ROWS // width)), s.n_neurons),
            chunk_shape=(min(s.n_frames, max(1, (1 << 18) // width)), s.n_neurons),
        ),
        rois=DynamicTableRegion(
            name="rois", data=list(range(ids.size)), description="all neurons", table=table
        ),
        unit=s.unit,
        **_clock(s),
    )
    ratio = "df" in s.unit.lower()
    group = pynwb.ophys.DfOverF if ratio else pynwb.ophys.Fluorescence
    module.add(group(roi_response_series=series))
    return series


def _no_pixels(neurons: int) -> list[Any]:
    """The pixels of each neuron, which a Session does not know: NWB wants a mask.

    One pixel of weight 0 each; nwbinspector fails on lists that are all empty.
    """
    from hdmf.common import VectorData, VectorIndex

    kind = np.dtype([("x", "<u4"), ("y", "<u4"), ("weight", "<f4")])
    text = "not known: one pixel of weight 0"
    pixels = VectorData(name="pixel_mask", description=text, data=np.zeros(neurons, kind))
    ends = list(range(1, neurons + 1))
    return [VectorIndex(name="pixel_mask_index", target=pixels, data=ends), pixels]


def _clock(s: Session) -> dict[str, Any]:
    if s.timestamps is not None:
        return {"timestamps": s.timestamps}
    return {"rate": s.rate, "starting_time": 0.0}


def _behavior(pynwb: Any, file: Any, s: Session, series: Any) -> None:
    if not s.behavior:
        return
    made = []
    for name, channel in s.behavior.items():
        _name(name, "behavior")
        clock = _clock(s)
        if channel.times is not None:
            clock = {"timestamps": channel.times}
        elif s.timestamps is not None:
            clock = {"timestamps": series}  # a link: the same time stamps
        made.append(
            pynwb.TimeSeries(
                name=name,
                data=plain(channel.values),
                unit=channel.unit or "unknown",
                **_kind(channel),
                **clock,
            )
        )
    module = file.create_processing_module("behavior", "behaviour")
    module.add(pynwb.behavior.BehavioralTimeSeries(time_series=made))


def _kind(channel: Channel) -> dict[str, str]:
    """NWB has no field for categories: `comments` says it, `continuity` tells other tools."""
    if channel.kind == "categorical":
        return {"comments": CATEGORICAL, "continuity": "step"}
    return {"continuity": "continuous"}


def _intervals(pynwb: Any, file: Any, s: Session) -> None:
    tables = dict(s.intervals)
    if len(s.trials):
        if "trials" in tables:
            raise RecordingError(
                "the name 'trials' is taken by the trials", where="intervals/trials"
            )
        # The end of a frame is the time of the next one.
        ends = np.append(s.times, s.times[-1] + 1.0 / s.rate)
        tables["trials"] = Intervals(s.times[s.trials.start], ends[s.trials.stop], s.trials.columns)
    for name, table in tables.items():
        _name(name, "intervals")
        _free(table.columns, TAKEN["time"], f"intervals/{name}")
        edges = {"start_time": table.start, "stop_time": table.stop}
        made = pynwb.epoch.TimeIntervals(
            name=name,
            description=f"{name}, seconds",
            id=list(range(len(table))),
            columns=_vectors(edges | dict(table.columns), f"intervals/{name}"),
        )
        if name in ("trials", "epochs", "invalid_times"):
            setattr(file, name, made)
        else:
            file.add_time_intervals(made)


def _vectors(columns: Mapping[str, np.ndarray], where: str) -> list[Any]:
    from hdmf.common import VectorData

    for name in columns:
        _name(name, where)
    return [
        VectorData(name=name, description=name, data=plain(values))
        for name, values in columns.items()
    ]


def plain(values: np.ndarray) -> Any:
    """Numbers as they are, text as h5py writes it: it has no fixed-width unicode."""
    if values.dtype.kind in "US":
        return values.astype(str).astype(h5py.string_dtype("utf-8"))
    return values


def _name(name: str, where: str) -> None:
    if not name.strip(". ") or any(c in name for c in "/:\0"):
        raise RecordingError(
            "a name that NWB cannot hold",
            where=where,
            found=repr(name),
            expected="a name without '/' and ':'",
        )


def _free(columns: Mapping[str, Any], taken: tuple[str, ...], where: str) -> None:
    for name in columns:
        if name in taken:
            raise RecordingError(f"NWB has a column {name!r} of its own", where=f"{where}/{name}")
