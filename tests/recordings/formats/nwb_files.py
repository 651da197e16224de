"""NWB files written by pynwb, as other tools write them."""

import datetime

import numpy as np
import pynwb
from hdmf.common import DynamicTableRegion, VectorData
from pynwb.ophys import Fluorescence, ImageSegmentation, RoiResponseSeries

START = datetime.datetime(2024, 5, 1, tzinfo=datetime.UTC)
RNG = np.random.default_rng(0)
TRACES = RNG.normal(size=(40, 6)).astype(np.float32)


class Made:
    """A file in the making: `made.series(...)` adds traces, `made.write(path)` writes."""

    def __init__(self, **about):
        given = dict(session_description="x", identifier="id-1", session_start_time=START)
        self.file = pynwb.NWBFile(**given | about)
        self.device = self.file.create_device("scope")
        self.module = self.file.create_processing_module("ophys", "traces")
        self.segmentation = ImageSegmentation()
        self.module.add(self.segmentation)
        self.tables = {}

    def plane(self, name="plane0", rois=6, columns=None, rate=10.0):
        channel = pynwb.ophys.OpticalChannel(name="c", description="x", emission_lambda=500.0)
        plane = self.file.create_imaging_plane(
            name=name, description="x", optical_channel=channel, device=self.device,
            excitation_lambda=900.0, indicator="GCaMP6f", location="V1", imaging_rate=rate,
        )  # fmt: skip
        table = self.segmentation.create_plane_segmentation(
            # roiextractors knows the table by this name alone.
            name="PlaneSegmentation" if name == "plane0" else f"rois_{name}",
            description="x",
            imaging_plane=plane,
        )
        for i in range(rois):
            table.add_roi(image_mask=np.eye(8, 9, i - 2))
        for column, values in (columns or {}).items():
            table.add_column(column, column, data=values)
        self.tables[name] = table
        return table

    def series(
        self, data=TRACES, name="RoiResponseSeries", box=Fluorescence, box_name=None,
        plane="plane0", rows=None, **how,
    ):  # fmt: skip
        table = self.tables.get(plane) or self.plane(plane)
        rows = list(range(len(table))) if rows is None else rows
        how = {"unit": "a.u.", "rate": 10.0} | how
        if "timestamps" in how:
            how.pop("rate")
        rois = DynamicTableRegion(name="rois", data=rows, description="x", table=table)
        made = RoiResponseSeries(name=name, data=data, rois=rois, **how)
        if box is None:
            self.file.add_acquisition(made)
            return made
        box_name = box_name or box.__name__
        if box_name in self.module.data_interfaces:
            self.module[box_name].add_roi_response_series(made)
        else:
            self.module.add(box(roi_response_series=made, name=box_name))
        return made

    def behavior(self, *containers):
        module = self.file.create_processing_module("behavior", "x")
        for c in containers:
            module.add(c)

    def intervals(self, name, **columns):
        made = pynwb.epoch.TimeIntervals(
            name=name, description="x", id=list(range(len(columns["start_time"]))),
            columns=[VectorData(name=k, description=k, data=v) for k, v in columns.items()],
        )  # fmt: skip
        if name in ("trials", "invalid_times"):
            setattr(self.file, name, made)
        else:
            self.file.add_time_intervals(made)

    def write(self, path):
        with pynwb.NWBHDF5IO(str(path), "w") as io:
            io.write(self.file, cache_spec=False)  # smaller, and a fraction of the time
        return path
