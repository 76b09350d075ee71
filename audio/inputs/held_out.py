"""Which inputs every training and every evaluation holds out: a hash of the key decides."""

import hashlib

VALIDATION_SHARE = 0.02


def key_share(text: str) -> float:
    """Return the number in [0, 1) that a key hashes to: inputs below `VALIDATION_SHARE` are held out everywhere."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") / 2**64
