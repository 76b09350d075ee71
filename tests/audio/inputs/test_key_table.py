import pytest

from sctok.audio.inputs import key_table as known
from sctok.audio.inputs.key_table import KeyTable


@pytest.mark.parametrize("key", ["a", "ä/ö", "", "\udcff", "a\0b"])
def test_the_first_value_of_a_key_is_kept(key: str) -> None:
    table = KeyTable()
    assert table.add(key, "one\udc80\0") is None
    assert table.add(key, "two") == "one\udc80\0"
    assert table.add(key + "x", "two") is None


def test_a_table_that_outgrows_memory_keeps_all_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(known, "_CACHE_KIB", 64)
    table = KeyTable()
    assert [table.add(f"{number:040}", str(number)) for number in range(5000)] == [None] * 5000
    assert [table.add(f"{number:040}", "") for number in range(0, 5000, 7)] == [str(n) for n in range(0, 5000, 7)]
