"""Files as somebody would make them who means harm."""

import io
import json
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sctok.formats.sct import CodecTokens


def add_member(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def token_shard(path: Path, tokens: CodecTokens, names: Mapping[str, str], **more: Any) -> Path:
    """Write the same tokens under names of members (key by name) that no writer of sctok would use."""
    array = io.BytesIO()
    np.save(array, tokens.tokens.astype(np.uint16))
    info = {
        "format": "sctok-tokens",
        "format_version": 1,
        "samples": tokens.samples,
        "token_rate": tokens.token_rate,
        "streams": ["semantic", "acoustic"],
        "codebook_hash": tokens.codebook_hash,
        "codec_hash": tokens.codec_hash,
        **more,
    }
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name, key in names.items():
            add_member(tar, f"{name}.tokens.npy", array.getvalue())
            add_member(tar, f"{name}.json", json.dumps({**info, "key": key}).encode())
    return path
