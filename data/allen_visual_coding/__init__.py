"""Allen Brain Observatory, Visual Coding 2-photon."""
