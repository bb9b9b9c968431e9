"""The compiled CPU kernels (``csrc/cpu/bind_*.cpp``): addresses are ``data_ptr()``, strides in elements."""

from collections.abc import Sequence

# (address, dtype code as in ``csrc/common/dtypes.hpp``, rows, columns, row stride, column stride)
_View = tuple[int, int, int, int, int, int]
# (address, dtype code, variables, stride of the variables)
_Operand = tuple[int, int, int, int]
# (positions so far, addresses of the means of x and, or 0, of y, and of the products), float64
_Sums = tuple[int, int, int, int]
# (size, stride, kernel, step, padding, dilation, outputs)
_PatchDim = tuple[int, int, int, int, int, int, int]

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

def moments(
    layers: Sequence[tuple[_Operand, _Operand, Sequence[tuple[int, int, int, int]], int, bool, _Sums]],
    threads: int,
    isa: str = "",
    /,
) -> list[int]:
    """Adds to the sums of every (x, y or x again, [(size, stride in x, in y, in the mask)], the mask or
    0, products in float64, sums); returns the positions that are in them."""

def patch_moments(
    layers: Sequence[tuple[tuple[int, int, int, int, int, int, Sequence[_PatchDim]], bool, _Sums]],
    threads: int,
    isa: str = "",
    /,
) -> list[int]:
    """The same of every ((address, dtype code, samples, their stride, channels, their stride, three dims),
    products in float64, sums)."""

def cholesky_solve(
    systems: Sequence[tuple[_View, _View, float, int]], threads: int, isa: str = "", /
) -> list[int]:
    """Fills the solution of every (matrix, right-hand side, damping, solution); returns 0, or the order of
    the first leading minor that is not positive."""
