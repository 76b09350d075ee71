"""Read the token shards of `sctok tokenize` in the order of a training: one file at a time, streams in columns.

python examples/read_tokens.py sctok-data/tokens/dataset
"""

import sys
from pathlib import Path

from sctok.formats.token_shards import read_token_shard


def main(folder: Path) -> None:
    total = 0
    for shard in sorted(folder.glob("*.tar")):
        for key, tokens, info in read_token_shard(shard):
            total += len(tokens)
            print(f"{key}: {len(tokens)} steps of {tokens.shape[1]} streams, {info['samples'] / 16_000:.2f} s")
    print(f"{total} steps")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
