"""One target, fuzzed in this process; what it is at stands in a file, which outlives a crash."""

from __future__ import annotations

import importlib.util
import mmap
import struct
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FunctionType
from typing import Any

_HEAD = struct.Struct("<QdQ")
_ROOM = 1 << 20


class State:
    """Executions so far, seconds of the slowest, and the input at hand, in a file shared with the parent."""

    def __init__(self, path: Path) -> None:
        if not path.exists():
            path.write_bytes(bytes(_ROOM))
        with path.open("r+b") as stream:
            self._memory = mmap.mmap(stream.fileno(), _ROOM)

    def read(self) -> tuple[int, float, bytes]:
        """(executions begun, seconds of the slowest, the last input)."""
        count, slowest, length = _HEAD.unpack_from(self._memory)
        return count, slowest, bytes(self._memory[_HEAD.size : _HEAD.size + length])

    def watch(self, run: Callable[[Any], None]) -> Callable[[Any], None]:
        """``run`` that notes what it is called with, and how long it took."""
        count, slowest, _ = self.read()

        def watched(value: Any) -> None:
            nonlocal count, slowest
            content = value if isinstance(value, bytes) else repr(value).encode(errors="replace")
            content = content[: _ROOM // 2]
            count += 1
            _HEAD.pack_into(self._memory, 0, count, slowest, len(content))
            self._memory[_HEAD.size : _HEAD.size + len(content)] = content
            start = time.perf_counter()
            run(value)
            slowest = max(slowest, time.perf_counter() - start)

        return watched


def main(target: str, executions: int, seed: int, state: Path, corpus: Path, engine: str) -> None:
    """Run a target so often; an exception is a finding. ``atheris`` as the engine ends the process."""
    if engine == "atheris":
        _guided(target, executions, seed, State(state), corpus)
    else:
        _structured(target, executions, seed, State(state))


def use_kernels_of(path: str) -> None:
    """Take ``slimfast._cpu`` from another file, one that was built with sanitizers."""
    import torch  # noqa: F401 (its OpenMP comes first)

    spec = importlib.util.spec_from_file_location("slimfast._cpu", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)


def _guided(target: str, executions: int, seed: int, state: State, corpus: Path) -> None:
    import atheris

    from . import files

    # By hand: an editable install has a finder of its own, which atheris' import hook does not see.
    for function in _functions():
        atheris.instrument_func(function)
    corpus.mkdir(parents=True, exist_ok=True)
    for i, content in enumerate(files.seeds(target)):
        (corpus / f"seed-{i}").write_bytes(content)
    words = corpus.with_suffix(".dict")
    escaped = ("".join(f"\\x{byte:02x}" for byte in word) for word in files.words())
    words.write_text("".join(f'"{word}"\n' for word in escaped))
    flags = [f"-runs={executions}", f"-seed={seed + 1}", "-max_len=16384", "-len_control=0", "-timeout=600"]
    flags += [f"-dict={words}", f"-artifact_prefix={corpus.with_suffix('.found-')}", str(corpus)]
    atheris.Setup([sys.argv[0], *flags], state.watch(files.READERS[target]))
    atheris.Fuzz()


def _functions() -> Iterator[FunctionType]:
    """The functions and methods of slimfast that are loaded."""
    for name, module in list(sys.modules.items()):
        if name.partition(".")[0] == "slimfast":
            for owner in (module, *(value for value in vars(module).values() if isinstance(value, type))):
                for value in list(vars(owner).values()):
                    found = getattr(value, "__func__", value)
                    if isinstance(found, FunctionType) and found.__module__ == name:
                        yield found


def _structured(target: str, executions: int, seed: int, state: State) -> None:
    import hypothesis
    from hypothesis import Phase, given, settings
    from hypothesis import strategies as st

    from . import files, structure

    if target in structure.TARGETS:
        run, values = structure.TARGETS[target]
    else:
        run, values = files.READERS[target], _edited(st.sampled_from(files.seeds(target)))
    fuzz = given(values)(state.watch(run))
    fuzz = settings(
        max_examples=executions,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(hypothesis.HealthCheck),
    )(hypothesis.seed(seed)(fuzz))
    fuzz()


def _edited(seeds: Any) -> Any:
    """Sound files with some bytes overwritten, and an end cut off or added."""
    from hypothesis import strategies as st

    @st.composite
    def edited(draw: st.DrawFn) -> bytes:
        content = bytearray(draw(seeds))
        for _ in range(draw(st.integers(0, 4))):
            at = draw(st.integers(0, len(content)))
            content[at : at + draw(st.integers(0, 8))] = draw(st.binary(max_size=8))
        return bytes(content[: draw(st.just(len(content)) | st.integers(0, len(content)))]) + draw(
            st.just(b"") | st.binary(max_size=8)
        )

    return edited()
