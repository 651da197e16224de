"""Builder of `allen_visual_coding`."""

from __future__ import annotations

from data.folder_builder import FolderBuilder


class AllenVisualCoding(FolderBuilder):
    """One session per NWB 1.0 file or processed session of brainsets; see README.md."""

    TITLE = "Allen Brain Observatory, Visual Coding 2-photon (de Vries et al., 2020)."
    CITATION = "de Vries et al., Nature Neuroscience 2020, doi:10.1038/s41593-019-0550-9"
    FORMATS = ("Allen Brain Observatory", "brainsets")
