"""The inputs that every training and evaluation holds out, chosen by a hash of their key."""

import hashlib

VALIDATION_SHARE = 0.02


def key_share(text: str) -> float:
    """Return a key's hash as a number in [0, 1). Inputs below `VALIDATION_SHARE` are held out everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
