"""Data sets as tensorflow-datasets builders that write ArrayRecord; one folder each."""
