"""Mutated recordings: every reader gives a Session or a RecordingError. `make fuzz`."""
