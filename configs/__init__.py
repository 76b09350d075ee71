"""Configurations of `sctok train`, found by name."""
