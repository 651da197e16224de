"""Hippocampal CA1 of mice on linear tracks over many days (Sheintuch et al., 2020)."""
