"""Simulated populations, eq. 17-18: generated, nothing is downloaded."""
