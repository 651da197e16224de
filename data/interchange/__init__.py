"""Any folder of session files: `.npz`, `.h5`, or another format that calm_jax reads."""
