"""Builder of `suite2p`."""

from __future__ import annotations

from data.folder_builder import FolderBuilder


class Suite2p(FolderBuilder):
    """One session per Suite2p folder, in folders of any depth; see README.md."""

    TITLE = "Calcium recordings of the user's own, as Suite2p wrote them."
    FORMATS = ("suite2p",)
