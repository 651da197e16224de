"""Analyses of a run: arrays gathered from it, the pure functions of `analysis/` on them."""
