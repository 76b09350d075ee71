"""Metrics, probes, codecs to compare with, and the report."""
