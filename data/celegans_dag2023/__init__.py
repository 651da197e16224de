"""Whole-brain recordings of behaving C. elegans (Dag et al., Cell 2023)."""
