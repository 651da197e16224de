"""Any folder of NWB 2 files with calcium traces, such as a dandiset."""
