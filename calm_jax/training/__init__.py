"""Training: one loop for every Task, sharded over devices, resumable to the bit."""
