"""Files that are whole or not there: written beside their final name, flushed to disk, then renamed."""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from safetensors import SafetensorError

from slimfast.errors import SlimfastError, one_line

# torch.save reports a failed write as a RuntimeError that holds one of these, with the system's reason lost.
_TORCH_WRITER = ("PytorchStreamWriter", "inline_container", "iostream error")


def reason_of(error: BaseException) -> str:
    """Say why a file could not be read or written: in the system's words, which name no file, where it has
    some.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return one_line(error)


def cannot_read(path: str | os.PathLike[str], reason: str | Exception) -> SlimfastError:
    """Make the error of a file that cannot be read, for a reason in words or what was raised."""
    return SlimfastError(f"cannot read {os.fspath(path)}: {_in_words(reason)}")


def cannot_write(path: str | os.PathLike[str], reason: str | Exception) -> SlimfastError:
    """Make the error of a file that cannot be written, for a reason in words or what was raised."""
    if isinstance(reason, FileNotFoundError):
        folder = Path(os.path.realpath(path) if os.path.islink(path) else path).parent
        reason = reason if folder.exists() else f"the folder {folder} does not exist"
    return SlimfastError(f"cannot write {os.fspath(path)}: {_in_words(reason)}")


def _in_words(reason: str | Exception) -> str:
    return reason if isinstance(reason, str) else reason_of(reason)


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a new, empty file beside ``path`` to write to; it takes the place of ``path`` when the block ends
    well.

    It has the suffix of ``path``, for writers that go by it, and the permissions of the file whose place it
    takes, else those of any new one. When the block raises (Ctrl-C included) it is removed, and what ``path``
    held before is still there. A folder that cannot be written, a full disk and the like raise
    :class:`SlimfastError` naming ``path``; others pass.

        with atomic_path("plan.json") as temporary:
            temporary.write_text(text)
    """
    target = _target(path)
    temporary = _beside(target, path)
    permissions = stat.S_IMODE((target if target.exists() else temporary).stat().st_mode)
    try:
        yield temporary
        # Some writers put a file of their own, readable by the owner alone, in the temporary one's place.
        temporary.chmod(permissions)
        _flush(temporary)
        os.replace(temporary, target)
        _flush_folder(target.parent)
    except OSError as error:
        # An error about another file, read inside the block, is not ours to explain.
        if error.filename is not None and Path(os.fsdecode(error.filename)).name != temporary.name:
            raise
        raise cannot_write(path, error) from error
    except SafetensorError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:
        if not any(text in str(error) for text in _TORCH_WRITER):
            raise
        raise cannot_write(path, "the disk took only a part of it (is it full?)") from error
    finally:
        with suppress(FileNotFoundError):
            temporary.unlink()


def check_file(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if it is a regular file; else raise :class:`SlimfastError`: reading a pipe would wait
    for ever.
    """
    found = Path(path)
    try:
        if found.is_file():
            return found
        there = os.path.lexists(found)
    except (OSError, ValueError):
        # Names that no file can have: too long, or with a zero byte.
        there = False
    raise cannot_read(found, "it is not a file" if there else "no such file")


def lock(descriptor: int, path: str | os.PathLike[str], *, wait: bool = False) -> None:
    """Lock an open file or folder until it is closed or this process ends, however that comes about.

    Raises :class:`SlimfastError` naming ``path`` where another run has it, if not told to ``wait`` for it, or
    this system has no such locks.
    """
    try:
        import fcntl
    except ImportError:
        raise SlimfastError(f"{os.fspath(path)}: no file locks here, without which runs could mix") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        raise SlimfastError(f"{os.fspath(path)}: another run writes to it; wait, or name another") from None
    except OSError as error:
        raise SlimfastError(f"{os.fspath(path)}: cannot be locked: {reason_of(error)}") from error


def append_whole(file: BinaryIO, place: int, content: bytes) -> None:
    """Write all of ``content`` from ``place`` to the end of an unbuffered file, or nothing; what a killed
    process left behind that place is cut off. :class:`OSError` where it does not fit.
    """
    file.truncate(place)
    file.seek(place)
    left = memoryview(content)
    try:
        while left:
            left = left[file.write(left) :]
    except OSError:
        file.truncate(place)
        raise


def check_writable(path: str | os.PathLike[str]) -> None:
    """Raise :class:`SlimfastError` now where :func:`atomic_path` would fail only after hours of work."""
    _beside(_target(path), path).unlink()


def output_folder(path: str | os.PathLike[str]) -> Path:
    """Make the folder ``path`` where it is missing, parents too; ``SlimfastError`` where it cannot be
    written.
    """
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SlimfastError(f"cannot make the folder {folder}: {reason_of(error)}") from error
    _beside(folder / "probe", folder).unlink()
    return folder


def _target(path: str | os.PathLike[str]) -> Path:
    """Find the file that ``path`` means, through links; only a regular file (or nothing) may be replaced."""
    target = Path(os.path.realpath(path))
    if os.path.isdir(target):
        raise cannot_write(path, "it is a folder")
    # Renaming onto /dev/null or a pipe would put a plain file in its place.
    if os.path.exists(target) and not stat.S_ISREG(target.stat().st_mode):
        raise cannot_write(path, "it is not a regular file")
    if _is_open_for_output(target):
        raise cannot_write(path, "this program's own output goes there; name another file")
    return target


def _is_open_for_output(target: Path) -> bool:
    """Whether standard output or error goes to the file of this name: /dev/stdout, or a redirection."""
    for descriptor in (1, 2):
        with suppress(OSError):
            if os.path.samestat(os.stat(target), os.fstat(descriptor)):
                return True
    return False


def _beside(target: Path, shown: str | os.PathLike[str]) -> Path:
    """Make a new empty file in the folder of ``target``, with its suffix and default permissions."""
    temporary = target.with_name(f".{target.stem}.{secrets.token_hex(4)}.part{target.suffix}")
    try:
        temporary.touch(exist_ok=False)
    except OSError as error:
        raise cannot_write(shown, error) from error
    return temporary


def _flush(path: Path) -> None:
    with path.open("rb") as stream:
        os.fsync(stream.fileno())


def _flush_folder(folder: Path) -> None:
    """Make the rename itself durable, where folders can be opened (POSIX)."""
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
