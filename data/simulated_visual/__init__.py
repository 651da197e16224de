"""Cell lines under gratings and a movie, Allen-like: generated, nothing is downloaded."""
