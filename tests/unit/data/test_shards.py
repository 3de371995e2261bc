"""Shards: told from text, named by paths, done or not."""

from pathlib import Path

import pytest

from crossearth.data.common.errors import InputError
from crossearth.data.common.files import write_checksummed
from crossearth.data.common.shards import MAX_SHARDS, Shard, is_done


def test_a_shards_part_is_one_of_all(tmp_path: Path) -> None:
    shards = [Shard(index, 3) for index in range(3)]
    assert [shard.part(tmp_path) for shard in shards] == shards[0].parts(tmp_path)
    assert Shard.parse("1/3") == shards[1]


@pytest.mark.parametrize(
    "text",
    ["", "1", "/", "3/3", "-1/3", "0/0", "²/3", f"0/{MAX_SHARDS + 1}", "0/20000000", "0/" + "9" * 5000],
)
def test_what_is_no_shard_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="shard "):
        Shard.parse(text)


@pytest.mark.parametrize("content", ["", "{", "[]", "5", "[" * 100_000, "\x00"])
def test_a_damaged_record_is_not_done_and_named(
    tmp_path: Path, content: str, caplog: pytest.LogCaptureFixture
) -> None:
    record = tmp_path / "summary.json"
    assert not is_done(record, "a")
    write_checksummed(record, {"identity": "a"})
    assert is_done(record, "a")
    assert not is_done(record, "b")
    assert not caplog.messages
    record.write_text(content)
    assert not is_done(record, "a")
    assert "damaged" in caplog.text and str(record) in caplog.text
