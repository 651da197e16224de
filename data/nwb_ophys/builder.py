"""Builder of `nwb_ophys`."""

from __future__ import annotations

from data.folder_builder import FolderBuilder


class NwbOphys(FolderBuilder):
    """One session per NWB 2 file, in folders of any depth; see README.md."""

    TITLE = "Calcium recordings of the user's own in NWB 2 files."
    FORMATS = ("NWB 2",)
