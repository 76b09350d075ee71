import io

import numpy as np
import pytest

from sctok.formats.npy import GrowingNpy


@pytest.mark.parametrize("row", [(), (2,)])
@pytest.mark.parametrize("counts", [[], [0], [1, 0, 5], [123_456]])
def test_numpy_reads_a_grown_array(row: tuple[int, ...], counts: list[int]) -> None:
    parts = [np.arange(count * int(np.prod(row)), dtype=np.int64).reshape(count, *row) % 60_000 for count in counts]
    file = io.BytesIO()
    array = GrowingNpy(file, np.dtype("u2"), row)
    for part in parts:
        array.append(part)
    array.finish()
    file.seek(0)
    found = np.load(file, allow_pickle=False)
    assert found.dtype == np.uint16
    np.testing.assert_array_equal(found, np.concatenate([np.zeros((0, *row), np.int64), *parts]))
