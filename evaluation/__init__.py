"""Evaluation of codecs, probes of features and tokens, and the report."""
