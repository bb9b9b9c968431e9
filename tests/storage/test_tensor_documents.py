"""Tensors with a document in the header of their file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file

from slimfast.errors import SlimfastError
from slimfast.storage.tensor_documents import open_tensor_document, write_tensor_document


def test_what_is_written_comes_back_and_is_plain_safetensors(tmp_path: Path) -> None:
    path, tensors = (
        tmp_path / "x.safetensors",
        {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1).int()},
    )
    write_tensor_document(path, '{"kind": "x"}', tensors)
    with open_tensor_document(path, "an x") as file:
        assert file.document == '{"kind": "x"}'
        assert dict(file.shapes) == {"a": (2, 3), "b": (1,)}
        assert dict(file.dtypes) == {"a": "F32", "b": "I32"}
        read = {name: file.tensor(name) for name in file.shapes}
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)
    with safe_open(path, framework="pt") as plain:
        assert plain.metadata().keys() == {"slimfast", "sha256"}
        assert plain.metadata()["slimfast"] == '{"kind": "x"}'


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_is_an_error(tmp_path: Path, place: float, bit: int) -> None:
    path = tmp_path / "x.safetensors"
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(1).int()}
    write_tensor_document(path, '{"kind": "x"}', tensors)
    content = bytearray(path.read_bytes())
    at = int(place * len(content))
    content[at] ^= 1 << bit
    path.write_bytes(content)
    header = content[8 : 8 + int.from_bytes(content[:8], "little")]
    try:
        with open_tensor_document(path, "an x") as file:
            file.check()
            read = {name: file.tensor(name) for name in file.shapes}
    except SlimfastError:
        return
    # Space between the entries of the header says nothing.
    assert json.loads(header) == json.loads(Path(path).read_bytes()[8 : 8 + len(header)])
    assert all(torch.equal(read[name], tensors[name]) for name in tensors)


def test_a_file_of_before_there_were_digests_is_read(tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata={"slimfast": "{}"})
    with open_tensor_document(tmp_path / "x.safetensors", "an x") as file:
        file.check()


@pytest.mark.parametrize("metadata", [None, {"format": "pt"}])
def test_other_tensors_are_refused(metadata: dict[str, str] | None, tmp_path: Path) -> None:
    save_file({"a": torch.ones(1)}, tmp_path / "x.safetensors", metadata=metadata)
    with (
        pytest.raises(SlimfastError, match=r"^cannot read .*: expected an x, got other tensors$"),
        open_tensor_document(tmp_path / "x.safetensors", "an x"),
    ):
        pass


def test_what_goes_wrong_inside_the_block_is_not_blamed_on_the_file(tmp_path: Path) -> None:
    write_tensor_document(tmp_path / "x.safetensors", "{}", {"a": torch.ones(1)})
    with pytest.raises(TypeError, match="mine"), open_tensor_document(tmp_path / "x.safetensors", "an x"):
        raise TypeError("mine")
    with open_tensor_document(tmp_path / "x.safetensors", "an x") as file:  # noqa: SIM117
        with pytest.raises(SlimfastError, match=r"^cannot read .*: b: "):
            file.tensor("b")
