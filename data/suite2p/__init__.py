"""Any folder of Suite2p outputs."""
