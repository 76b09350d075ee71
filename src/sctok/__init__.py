"""sctok: audio to discrete tokens after the SemantiCodec paper."""

__version__ = "0.1.0"
