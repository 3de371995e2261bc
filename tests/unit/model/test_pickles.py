"""Files from outside: tensors come out, nothing runs."""

import builtins
import functools
import os
import pickle
import resource
import struct
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from released import write_released

from crossearth.data.common.errors import InputError
from crossearth.model.weights.pickles import Inert, read_torch_file
from crossearth.model.weights.release import read_backbone

STATE = {
    "a": torch.arange(12.0).reshape(3, 4),
    "transposed": torch.arange(6.0).reshape(2, 3).T,
    "scalar": torch.tensor(0.5),
    "half": torch.ones(3, dtype=torch.float16),
    "count": torch.tensor([7]),
    "empty": torch.zeros(0, 4),
}


class Reduced:
    """Pickles to a call of `function`."""

    def __init__(self, function: Any, *args: Any) -> None:
        self.call = (function, args)

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("legacy", [False, True])
def test_tensors_of_an_mmengine_checkpoint_are_read_and_the_rest_is_inert(
    tmp_path: Path, legacy: bool
) -> None:
    write_released(tmp_path / "released.pth", STATE, ("road", "tree"), legacy=legacy)
    root = read_torch_file(tmp_path / "released.pth")
    assert root["state_dict"].keys() == STATE.keys()
    for name, tensor in STATE.items():
        assert torch.equal(root["state_dict"][name], tensor), name
    assert root["meta"]["dataset_meta"]["classes"] == ("road", "tree")
    assert type(root["message_hub"]["log_scalars"]["train/loss"]) is Inert


def test_parameters_and_views_of_one_storage_are_read(tmp_path: Path) -> None:
    whole = torch.arange(10.0)
    torch.save({"p": torch.nn.Parameter(whole), "tail": whole[6:]}, tmp_path / "x.pth")
    root = read_torch_file(tmp_path / "x.pth")
    assert torch.equal(root["p"], whole)
    assert torch.equal(root["tail"], whole[6:])


def attacks(mark: Path) -> dict[str, Any]:
    command = f"touch {mark}"
    code = f"open({str(mark)!r}, 'w').close()"
    return {
        "os.system": Reduced(os.system, command),
        "eval": Reduced(eval, code),
        "exec": Reduced(builtins.exec, code),
        "open": Reduced(open, str(mark), "w"),
        "partial": Reduced(functools.partial(os.system, command)),
        "partial of a known word": Reduced(functools.partial, getattr, "system"),
        "getattr": Reduced(getattr, Reduced(__import__, "os"), "system"),
        "import": Reduced(__import__, "antigravity"),
        "torch.load": Reduced(torch.load, str(mark)),
        "map": Reduced(list, Reduced(map, os.system, [command])),
        "unpickle again": Reduced(pickle.loads, pickle.dumps(Reduced(os.system, command))),
    }


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("depth", ["root", "nested", "beside weights"])
@pytest.mark.parametrize("attack", attacks(Path()))
def test_nothing_of_a_hostile_pickle_runs(tmp_path: Path, attack: str, depth: str, legacy: bool) -> None:
    mark = tmp_path / "ran"
    payload = attacks(mark)[attack]
    content = {
        "root": payload,
        "nested": {"meta": [{"deep": (1, [payload])}]},
        "beside weights": {"state_dict": STATE, "message_hub": payload},
    }[depth]
    path = tmp_path / "hostile.pth"
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(InputError, match="the pickle asks for") as refused:
        read_torch_file(path)
    assert not mark.exists()
    assert str(path) in str(refused.value)
    # the test would be empty if the payload were harmless
    if attack == "os.system" and depth == "root":
        torch.load(path, weights_only=False)
        assert mark.exists()


def opcodes(*parts: bytes) -> bytes:
    return b"\x80\x02" + b"".join(parts) + b"."


def word(name: str) -> bytes:
    module, _, member = name.rpartition(".")
    return f"c{module}\n{member}\n".encode()


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value)) + value.encode()


def archive(path: Path, index: bytes, compression: int = zipfile.ZIP_STORED, **members: bytes) -> Path:
    with zipfile.ZipFile(path, "w", compression) as zipped:
        zipped.writestr("archive/data.pkl", index)
        zipped.writestr("archive/version", "3\n")
        for name, content in members.items():
            zipped.writestr(f"archive/data/{name}", content)
    return path


STORAGE = b"(" + text("storage") + b"%b" + text("0") + text("cpu") + b"K\x04tQ"
REBUILD = word("torch._utils._rebuild_tensor_v2") + b"(%b" + b"%b" + b"%b" + b"%b" + b"\x89NtR"
FLOATS = STORAGE % word("torch.FloatStorage")
TRICKS = {
    "a storage class that is a function": STORAGE % word("os.system"),
    "a storage class that is text": STORAGE % text("FloatStorage"),
    "a storage class that is inert": STORAGE % word("numpy.ndarray"),
    "a storage that is called": word("torch.FloatStorage") + b"(" + text("touch ran") + b"tR",
    "an outside reference that is a file": text("../../secret") + b"Q",
    "a tensor of text": REBUILD % (text("storage"), b"K\x00", b"(K\x02t", b"(K\x01t"),
    "a tensor beyond its storage": REBUILD % (FLOATS, b"K\x03", b"(K\x02t", b"(K\x01t"),
    "a tensor before its storage": REBUILD % (FLOATS, b"J\xff\xff\xff\xff", b"(K\x02t", b"(K\x01t"),
    "a state for a rebuilding class": word("torch._utils._rebuild_tensor_v2") + b"}" + text("x") + b"K\x01sb",
    "a state for a tensor": REBUILD % (FLOATS, b"K\x00", b"(K\x02t", b"(K\x01t")
    + b"}"
    + text("offset")
    + b"K\x09sb",
    "a state for the inert class": word("numpy.ndarray")
    + b"N}"
    + text("append")
    + word("numpy.ndarray")
    + b"s\x86b",
    "a class to instantiate": b"(" + text("touch ran") + b"ios\nsystem\n",
    "a class with arguments": word("subprocess.Popen") + text("touch ran") + b"\x85\x81",
    "a word on the stack": text("os") + text("system") + b"\x93",
    "a dotted word": text("collections") + text("OrderedDict.fromkeys.__globals__") + b"\x93",
    "an extension code": b"\x82\x01",
    "a stack that is empty": b"R",
    "a cut index": b"X\xff\xff",
}


@pytest.mark.parametrize("trick", TRICKS)
def test_no_trick_of_the_format_gets_through(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trick: str
) -> None:
    monkeypatch.chdir(tmp_path)
    path = archive(tmp_path / "trick.pth", opcodes(TRICKS[trick]), **{"0": bytes(16)})
    with pytest.raises(InputError, match=r"trick\.pth"):
        read_torch_file(path)
    assert sorted(tmp_path.iterdir()) == [path]


def test_one_number_blown_up_to_gigabytes_is_no_parameter(tmp_path: Path) -> None:
    blown_up = REBUILD % (FLOATS, b"K\x00", b"(J\xff\xff\xff\x7ft", b"(K\x00t")
    path = archive(
        tmp_path / "x.pth", opcodes(b"}" + text("pos_embed") + blown_up + b"s"), **{"0": bytes(16)}
    )
    with pytest.raises(InputError, match="pos_embed: 2147483647 numbers, of which the file holds 4"):
        read_backbone(path)


def test_the_same_index_without_a_trick_is_read(tmp_path: Path) -> None:
    index = opcodes(REBUILD % (FLOATS, b"K\x01", b"(K\x03t", b"(K\x01t"))
    path = archive(tmp_path / "x.pth", index, **{"0": struct.pack("<4f", 0, 1, 2, 3)})
    assert torch.equal(read_torch_file(path), torch.tensor([1.0, 2.0, 3.0]))


def test_inert_classes_stay_as_they_were(tmp_path: Path) -> None:
    before = dict(vars(Inert))
    slot_state = word("numpy.ndarray") + b")RN}" + text("append") + b"K\x01s\x86b"
    assert type(read_torch_file(archive(tmp_path / "x.pth", opcodes(slot_state)))) is Inert
    assert dict(vars(Inert)) == before


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "PyTorch"),
        (b"PK\x03\x04 but no archive", "PyTorch"),
        (b"\x89PNG\r\n", "PyTorch"),
        (b"\x80\x02N.", "torch.save"),
    ],
)
def test_what_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_torch_file(tmp_path / "x.pth")


def test_a_missing_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path / "absent.pth", tmp_path):
        with pytest.raises(InputError, match="cannot read"):
            read_torch_file(path)


@pytest.mark.parametrize(
    "put", [b"r\xff\xff\xff\x03", b"p67108863\n", b"q\xff"], ids=["LONG_BINPUT", "PUT", "BINPUT"]
)
@pytest.mark.parametrize("legacy", [False, True])
def test_a_memo_far_ahead_takes_no_memory(tmp_path: Path, legacy: bool, put: bytes) -> None:
    """CPython's unpickler makes room for all memos before it: nine bytes would take a gibibyte."""
    path = tmp_path / "x.pth"
    path.write_bytes(opcodes(b"N" + put)) if legacy else archive(path, opcodes(b"N" + put))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with suppress(InputError):
        assert read_torch_file(path) is None
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000, "kilobytes"


@pytest.mark.parametrize("legacy", [False, True])
def test_a_file_cut_anywhere_is_refused(tmp_path: Path, legacy: bool) -> None:
    write_released(tmp_path / "whole.pth", {"a": torch.ones(300)}, legacy=legacy)
    whole = (tmp_path / "whole.pth").read_bytes()
    for length in range(0, len(whole), 97):
        (tmp_path / "cut.pth").write_bytes(whole[:length])
        with pytest.raises(InputError):
            read_torch_file(tmp_path / "cut.pth")


def test_a_flipped_bit_in_the_weights_is_found(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(300)}, tmp_path / "x.pth")
    content = bytearray((tmp_path / "x.pth").read_bytes())
    content[content.index(struct.pack("<f", 1.0) * 50) + 40] ^= 1
    (tmp_path / "x.pth").write_bytes(content)
    with pytest.raises(InputError, match="CRC"):
        read_torch_file(tmp_path / "x.pth")


def test_compressed_members_and_missing_storages_are_refused(tmp_path: Path) -> None:
    index = opcodes(REBUILD % (FLOATS, b"K\x00", b"(K\x04t", b"(K\x01t"))
    with pytest.raises(InputError, match="compressed"):
        read_torch_file(archive(tmp_path / "bomb.pth", index, zipfile.ZIP_DEFLATED, **{"0": bytes(16)}))
    for members in ({}, {"0": bytes(8)}):
        with pytest.raises(InputError, match="PyTorch"):
            read_torch_file(archive(tmp_path / "short.pth", index, **members))
