"""Files appear whole or not at all, and whatever stops them is one line that names them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from slimfast.errors import SlimfastError
from slimfast.storage.atomic import atomic_path, check_writable, output_folder


def write_bytes(path: Path) -> None:
    path.write_bytes(bytes(1 << 20))


def write_safetensors(path: Path) -> None:
    save_file({"weight": torch.zeros(1 << 18)}, path)


def write_torch(path: Path) -> None:
    torch.save({"weight": torch.zeros(1 << 18)}, path)


def write_atomically(path: Path, write) -> None:
    with atomic_path(path) as temporary:
        write(temporary)


def test_replaces_what_was_there_and_leaves_no_other_file(tmp_path):
    target = tmp_path / "plan.json"
    target.write_text("old")
    with atomic_path(target) as temporary:
        assert temporary.parent == tmp_path
        assert temporary.suffix == ".json"
        temporary.write_text("new")
        assert target.read_text() == "old"
    assert target.read_text() == "new"
    assert os.listdir(tmp_path) == ["plan.json"]


def test_new_files_have_the_permissions_of_any_new_file(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        temporary.write_text("x")
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


def test_a_writer_that_puts_its_own_file_in_place_changes_no_permissions(tmp_path):
    with atomic_path(tmp_path / "a") as temporary:
        own = tmp_path / "own"
        own.touch(mode=0o600)
        own.replace(temporary)
    (tmp_path / "b").write_text("x")
    assert (tmp_path / "a").stat().st_mode == (tmp_path / "b").stat().st_mode


@pytest.mark.parametrize("error", [RuntimeError("no"), KeyboardInterrupt()])
def test_an_error_in_the_block_passes_and_keeps_the_old_file(tmp_path, error):
    target = tmp_path / "thin.safetensors"
    target.write_text("old")

    def write_half(path: Path) -> None:
        path.write_text("half")
        raise error

    with pytest.raises(type(error)):
        write_atomically(target, write_half)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["thin.safetensors"]


def test_a_missing_file_read_in_the_block_is_reported_as_itself(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"weights\.pth"), atomic_path(tmp_path / "out.json"):
        (tmp_path / "weights.pth").read_bytes()
    assert os.listdir(tmp_path) == []


@pytest.mark.usefixtures("small_disk")
@pytest.mark.parametrize("write", [write_bytes, write_safetensors, write_torch])
def test_a_disk_that_fills_up_half_way(tmp_path, write):
    target = tmp_path / "thin.safetensors"
    target.write_text("old")
    with pytest.raises(SlimfastError, match=r"^cannot write .*thin\.safetensors: .+") as caught:
        write_atomically(target, write)
    assert "\n" not in str(caught.value)
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["thin.safetensors"]


def test_a_missing_folder(tmp_path):
    path = tmp_path / "nowhere" / "plan.json"
    with pytest.raises(SlimfastError, match=r"plan\.json: the folder .*nowhere does not exist"):
        check_writable(path)
    with pytest.raises(SlimfastError, match="nowhere does not exist"), atomic_path(path):
        pytest.fail("the block must not run")


def test_a_folder_below_a_file_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(SlimfastError, match=r"cannot write .*plan\.json: "):
        check_writable(tmp_path / "file" / "plan.json")
    with pytest.raises(SlimfastError, match=r"cannot make the folder .*out: "):
        output_folder(tmp_path / "file" / "out")


def test_a_read_only_folder(read_only_folder):
    with pytest.raises(SlimfastError, match=r"cannot write .*plan\.json: Permission denied"):
        check_writable(read_only_folder / "plan.json")
    with pytest.raises(SlimfastError, match="Permission denied"):
        output_folder(read_only_folder / "out")


def test_folders_and_devices_are_not_replaced(tmp_path):
    with pytest.raises(SlimfastError, match="it is a folder"):
        check_writable(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SlimfastError, match="it is not a regular file"):
        check_writable(tmp_path / "pipe")


@pytest.mark.parametrize("name", ["/dev/stdout", "/dev/fd/1", "out.txt", "link", "/dev/stderr"])
def test_what_a_programs_own_output_goes_to_is_not_replaced(tmp_path, name):
    code = f"""
from slimfast.storage.atomic import atomic_path
print("said before", flush=True)
with atomic_path({name!r}) as temporary:
    temporary.write_text("new")
"""
    (tmp_path / "link").symlink_to(tmp_path / "out.txt")
    with open(tmp_path / "out.txt", "w") as out, open(tmp_path / "err.txt", "w") as err:
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, stdout=out, stderr=err, env=environment, check=False
        )
    assert done.returncode == 1
    assert (tmp_path / "out.txt").read_text() == "said before\n"
    assert f"cannot write {name}: this program's own output goes there" in (tmp_path / "err.txt").read_text()
    assert sorted(os.listdir(tmp_path)) == ["err.txt", "link", "out.txt"]


def test_a_link_keeps_pointing_to_the_file_that_is_replaced(tmp_path):
    (tmp_path / "real").write_text("old")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    with atomic_path(tmp_path / "link") as temporary:
        temporary.write_text("new")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "real").read_text() == "new"


def test_output_folder_makes_parents_and_leaves_nothing_in_it(tmp_path):
    folder = output_folder(tmp_path / "a" / "b")
    assert os.listdir(folder) == []
    assert output_folder(folder) == folder
