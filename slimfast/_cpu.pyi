"""The compiled CPU kernels (``csrc/cpu/bind_*.cpp``): addresses are ``data_ptr()``, strides in elements."""

from collections.abc import Sequence

# (address, dtype code as in ``csrc/common/dtypes.hpp``, rows, columns, row stride, column stride)
_View = tuple[int, int, int, int, int, int]

def isa() -> str:
    """The instruction set the kernels run with; ``ValueError`` where SLIMFAST_ISA cannot be had."""

def available_isas() -> list[str]:
    """The instruction sets that this machine can run, the widest last."""

def covariance(
    layers: Sequence[tuple[Sequence[_View], bool, int, int]], threads: int, isa: str = "", /
) -> list[float]:
    """Fills the output of every (members, by rows, result's dtype code, output); returns the traces."""

def eigvalsh(matrices: Sequence[tuple[_View, int]], threads: int, isa: str = "", /) -> None:
    """Fills the eigenvalues of every (matrix, output's address)."""

def eigvalsh_stacked(
    first: _View, count: int, stride: int, values: int, threads: int, isa: str = "", /
) -> None:
    """Fills the eigenvalues, one row after another, of ``count`` matrices ``stride`` elements apart."""

def pivoted_cholesky(
    matrices: Sequence[tuple[_View, int, int, int, int]], threads: int, isa: str = "", /
) -> list[int]:
    """Fills (matrix, rank, order, transposed factor, residual); returns how many picks each one made."""

def gather(tensors: Sequence[tuple[int, int, int, Sequence[tuple[int, int, int]]]], threads: int, /) -> None:
    """Fills every (input, output, bytes of an element, [(size, stride, address of the indices or 0)])."""
