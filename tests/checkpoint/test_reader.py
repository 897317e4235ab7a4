"""Reading a file of weights: what loads, what is refused with which words; and no code in a file runs."""

from __future__ import annotations

import argparse
import json
import os
import pickle
import struct
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mimbench.checkpoint import outside
from mimbench.checkpoint.reader import read
from mimbench.errors import UserError

STATE = {"a.weight": torch.arange(600.0), "a.bias": torch.ones(3)}


class Evil:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (os.mkdir, ("never",))


class CfgNode(dict):  # type: ignore[type-arg]
    """A dictionary of settings with a class of its own, as yacs makes them."""


@pytest.fixture(autouse=True)
def no_code_ran(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.chdir(tmp_path)
    yield
    assert not Path("never").exists()


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("nesting", [(), ("model",), ("model_state",), ("state", "net", "module")])
def test_nested_dictionaries_become_names(nesting: tuple[str, ...], old: bool) -> None:
    value: Any = OrderedDict(STATE)
    for key in reversed(nesting):
        value = {key: value, "epoch": 3, 7: torch.zeros(1), "optimizer": {"state": torch.zeros(1)}}
    torch.save(value, "x.pth", _use_new_zipfile_serialization=not old)
    found = read(Path("x.pth"))
    assert set(found) == {".".join([*nesting, name]) for name in STATE}
    assert all(torch.equal(found[".".join([*nesting, name])], tensor) for name, tensor in STATE.items())


def test_a_safetensors_file_is_known_by_its_content() -> None:
    save_file(STATE, "x.bin")
    assert set(read(Path("x.bin"))) == set(STATE)


def test_options_as_a_namespace_load_and_say_the_number_of_heads() -> None:
    options = argparse.Namespace(num_heads=4, decoder={"num_heads": 8})
    torch.save({"model": STATE, "args": options}, "x.pth")
    assert read(Path("x.pth")).num_heads == {4}
    for options in ({"blocks": [{"n_heads": 4}]}, {"config": {"num_attention_heads": 4}}):
        torch.save({"model": STATE, "args": options}, "x.pth")
        assert read(Path("x.pth")).num_heads == {4}
    save_file(STATE, "x.safetensors", {"mine": json.dumps({"config": {"num_heads": 2}}), "note": "{"})
    assert read(Path("x.safetensors")).num_heads == {2}
    torch.save(STATE, "x.pth")
    assert read(Path("x.pth")).num_heads == frozenset()


@pytest.mark.filterwarnings("ignore:.*pickle")
@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize(
    ("leftover", "named"),
    [
        (np.float64(77.1), r"multiarray\.scalar"),
        (np.int64(3), r"multiarray\.scalar"),
        (np.ones(3), r"multiarray\._reconstruct"),
        (CfgNode(lr=0.1), r"CfgNode"),
        (Path("out"), r"pathlib\S*Path"),
        (Evil(), r"posix\.mkdir"),
        (nn.Linear(2, 2), r"torch\.nn\.modules\.linear\.Linear"),
    ],
    ids=["float64", "int64", "array", "yacs", "path", "evil", "module"],
)
def test_a_class_in_the_way_is_named_with_the_way_out(leftover: Any, named: str, old: bool) -> None:
    torch.save({"model": STATE, "extra": leftover}, "x.pth", _use_new_zipfile_serialization=not old)
    with pytest.raises(UserError, match=rf"--weights mae: 'x.pth'.*{named}.*make a \.safetensors.*save_file"):
        read(Path("x.pth"), "--weights mae")


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_plain_pickles_run_no_code(protocol: int) -> None:
    for value in (Evil(), {"a": Evil()}, STATE):
        Path("x.pth").write_bytes(pickle.dumps(value, protocol))
        with pytest.raises(UserError, match="without running code"):
            read(Path("x.pth"))


@pytest.mark.filterwarnings("ignore:.*(TorchScript|torch.jit)")
def test_a_torchscript_archive_is_called_by_its_name() -> None:
    torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)), "x.pt")
    with pytest.raises(UserError, match=r"TorchScript archive, which is code.*torch\.jit\.load"):
        read(Path("x.pt"))


def flipped(path: Path, record: str) -> None:
    """Flip one bit in the middle of a record of a torch archive."""
    with zipfile.ZipFile(path) as archive:
        size = archive.getinfo(record).file_size
        content = archive.read(record)
    whole = bytearray(path.read_bytes())
    start = bytes(whole).index(content)
    whole[start + size // 2] ^= 1
    path.write_bytes(whole)


def test_one_flipped_bit_of_an_archive_is_found() -> None:
    torch.save(STATE, "x.pth")
    flipped(Path("x.pth"), "x/data/0")
    with pytest.raises(UserError, match=r"damaged or cut short.*x/data/0"):
        read(Path("x.pth"))


def test_an_archive_without_checksums_loads() -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(STATE, "x.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    assert set(read(Path("x.pth"))) == set(STATE)


@pytest.mark.parametrize("share", [0.2, 0.6, 0.99])
@pytest.mark.parametrize("name", ["x.pth", "x.safetensors"])
def test_a_file_that_is_cut_short_is_called_damaged(name: str, share: float) -> None:
    save_file(STATE, name) if "safe" in name else torch.save(STATE, name)
    whole = Path(name).read_bytes()
    Path(name).write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=f"{name}.*damaged"):
        read(Path(name))


def test_old_files_that_are_cut_short_are_refused() -> None:
    torch.save(STATE, "x.pth", _use_new_zipfile_serialization=False)
    whole = Path("x.pth").read_bytes()
    for size in (3, 40, len(whole) // 2, len(whole) - 1):
        Path("x.pth").write_bytes(whole[:size])
        with pytest.raises(UserError, match=r"x\.pth"):
            read(Path("x.pth"))


def test_what_is_no_checkpoint_is_called_what_it_is() -> None:
    def refused(words: str) -> None:
        with pytest.raises(UserError, match=words):
            read(Path("x"))

    refused("No such file")
    Path("x").mkdir()
    refused("It is a folder")
    Path("x").rmdir()
    os.mkfifo("x")
    refused("pipe or a device")  # and does not wait for a writer
    Path("x").unlink()
    Path("x").touch()
    refused("It is empty")
    Path("x").write_text("<!DOCTYPE html><title>Sign in</title>")
    refused("web page")
    Path("x").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n")
    refused("Git LFS pointer")
    Path("x").write_text("no weights at all")
    refused("neither a safetensors file nor")
    np.savez("x.npz", a=np.ones(3))
    Path("x.npz").rename("x")
    refused("zip archive, but torch.save did not write it")
    torch.save([torch.zeros(3)], "x")
    refused("a list, without tensors that have names")
    torch.save({"epoch": 3, "models": [STATE]}, "x")
    refused("a dictionary with the keys 'epoch', 'models', without tensors")
    Path("x").write_bytes(struct.pack("<Q", 1 << 62) + b"{" + b" " * 40)
    refused("Not readable as safetensors")


def test_a_file_larger_than_the_memory_is_not_read() -> None:
    Path("x.pth").write_bytes(b"PK\x03\x04")
    os.truncate("x.pth", 1 << 43)
    with pytest.raises(UserError, match=r"8192 GiB, more than this machine's memory"):
        read(Path("x.pth"))


def test_an_archive_that_unpacks_to_more_than_the_memory_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.zeros(1 << 20)}, "y.pth")
    with zipfile.ZipFile("y.pth") as plain, zipfile.ZipFile("x.pth", "w", zipfile.ZIP_DEFLATED) as packed:
        for record in plain.namelist():
            packed.writestr(record, plain.read(record))
    monkeypatch.setattr(outside.os, "sysconf", lambda name: 1 << 10)  # a machine of 1 MiB
    assert Path("x.pth").stat().st_size < 1 << 20
    with pytest.raises(UserError, match="more than this machine's memory"):
        read(Path("x.pth"))


def test_dictionaries_nested_without_end_are_refused() -> None:
    endless: dict[str, Any] = {"a": torch.zeros(1)}
    endless["again"] = endless
    torch.save(endless, "x.pth")
    with pytest.raises(UserError, match="nested more than 16 levels"):
        read(Path("x.pth"))


def test_two_tensors_of_one_name_are_refused() -> None:
    torch.save({"a.b": torch.zeros(1), "a": {"b": torch.ones(1)}}, "x.pth")
    with pytest.raises(UserError, match=r"two tensors called 'a\.b'"):
        read(Path("x.pth"))
