"""Decoders of behaviour to stand beside ours; one file a method."""
