"""A small Brain Observatory file (NWB 1.0), laid out as the Allen Institute's files are."""

from __future__ import annotations

import h5py
import numpy as np

PIPELINE = "processing/brain_observatory_pipeline"
MOVIE, REPEATS = 20, 3  # frames of the movie; times it is shown
FRAMES, NEURONS = 600, 5


def write_allen(path, *, frames=FRAMES, neurons=NEURONS, seed=0):
    """Writes the file; returns what was written, by name."""
    rng = np.random.default_rng(seed)
    times = 8.7 + np.arange(frames) / 30.0 + rng.uniform(0, 1e-3, frames)
    dff = rng.normal(size=(neurons, frames)).astype(np.float32)
    raw = (100 + 10 * dff).astype(np.float32)
    out = {"times": times, "dff": dff, "raw": raw}
    with h5py.File(path, "w") as f:
        f["nwb_version"] = "NWB-1.0.5"
        f["identifier"] = "Brain Observatory Visual Coding Experiment 7"
        general = f.create_group("general")
        for name, text in {
            "experiment_container_id": "511507144",
            "ophys_experiment_id": "496908818",
            "session_type": "three_session_A",
            "session_id": "496908818",
            "specimen_name": "Rorb-IRES2-Cre;Camk2a-tTA;Ai93-222181",
            "targeted_structure": "VISp",
            "subject/subject_id": "491604967",
            "subject/age": "90 days",
            "subject/sex": "male",
            "subject/genotype": "Rorb-IRES2-Cre/wt;Camk2a-tTA/wt;Ai93(TITL-GCaMP6f)/wt",
            "optophysiology/imaging_plane_1/imaging depth": "275 microns",
            "optophysiology/imaging_plane_1/indicator": "GCaMP6f",
            "optophysiology/imaging_plane_1/location": "VISp",
        }.items():
            general[name] = np.bytes_(text.encode())
        p = f.create_group(PIPELINE)
        for place, values in (
            ("DfOverF/imaging_plane_1", dff),
            ("Fluorescence/imaging_plane_1", raw),
            ("Fluorescence/imaging_plane_1_demixed_signal", raw + 1),
            ("Fluorescence/imaging_plane_1_neuropil_response", raw + 2),
        ):
            p[f"{place}/data"] = values
            p[f"{place}/timestamps"] = times
            p[f"{place}/num_samples"] = np.int32(frames)
        p["ImageSegmentation/cell_specimen_ids"] = 517472000 + np.arange(neurons)
        p["ImageSegmentation/roi_ids"] = np.array([b"%d" % (5 * i) for i in range(neurons)])
        speed = rng.normal(size=frames - 20).astype(np.float32)
        speed[:4] = np.nan
        p["BehavioralTimeSeries/running_speed/data"] = speed
        p["BehavioralTimeSeries/running_speed/timestamps"] = times[10:-10]
        p["EyeTracking/pupil_location/data"] = rng.normal(size=(frames, 2))
        p["EyeTracking/pupil_location/timestamps"] = times
        p["PupilTracking/pupil_size/data"] = rng.uniform(50, 90, frames)
        p["PupilTracking/pupil_size/timestamps"] = times
        out["speed"] = speed

        show = f.create_group("stimulus/presentation")
        start = 10 + 90 * np.arange(4)
        table = np.array([[1, 0, 0], [2, 90, 0], [np.nan, np.nan, 1], [1, 315, 0]], np.float32)
        g = show.create_group("drifting_gratings_stimulus")
        g["data"] = table
        g["features"] = np.array([b"temporal_frequency", b"orientation", b"blank_sweep"])
        g["frame_duration"] = np.stack([start, start + 60], 1).astype(np.float32)
        g = show.create_group("static_gratings_stimulus")
        first = 370 + 8 * np.arange(5)
        g["data"] = np.array([[0.04, 30, 0.25]] * 5, np.float32)
        g["features"] = np.array([b"spatial_frequency", b"orientation", b"phase"])
        g["frame_duration"] = np.stack([first, first + 7], 1)
        g = show.create_group("natural_movie_one_stimulus")
        first = 420 + np.arange(MOVIE * REPEATS)
        g["data"] = np.tile(np.arange(MOVIE), REPEATS)
        g["frame_duration"] = np.stack([first, first + 1], 1)
        g = show.create_group("natural_scenes_stimulus")
        first = 500 + 8 * np.arange(6)
        g["data"] = np.array([3, -1, 0, 3, 1, -1])
        g["frame_duration"] = np.stack([first, first + 7], 1)
        g = show.create_group("spontaneous_stimulus")
        g["data"] = np.array([1, -1], np.int8)
        g["frame_duration"] = np.array([[550, 550], [590, 590]])
        stack = f.create_group("stimulus/templates")
        out["movie"] = rng.integers(0, 256, (MOVIE, 6, 8), np.uint8)
        stack["natural_movie_one_image_stack/data"] = out["movie"]
        out["scenes"] = rng.integers(0, 256, (4, 6, 8)).astype(np.float32)
        stack["natural_scenes_image_stack/data"] = out["scenes"]
    return out
