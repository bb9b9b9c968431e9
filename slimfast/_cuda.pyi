"""The CUDA kernels' entries. Addresses are integers; tables and layouts are described in ``csrc/cuda/*.hpp``.

Every launch takes (device, stream) first and returns before the kernel has run; ``RuntimeError`` names the
kernel that could not be launched.
"""

COVARIANCE_SMALL_TILE: int
COVARIANCE_LARGE_TILE: int
COVARIANCE_CHUNK: int
COVARIANCE_FINISH_ROWS: int
MOMENT_ROWS: int
MEAN_VARIABLES: int
JOIN_VARIABLES: int
MOMENT_FINISH_ROWS: int
WARP_MATRIX: int
MAX_CLUSTER: int
STURM_VALUES: int

class GatherTable:
    """The table of a gather, as ``gather_table`` of ``gather.hpp`` makes it."""

    count: int
    tiles: int
    def __init__(
        self,
        tensors: list[tuple[int, int, int, list[tuple[int, int, int]]]],
        indices: list[tuple[int, int]],
    ) -> None: ...
    def __len__(self) -> int: ...
    def write(self, to: int, /) -> None: ...

def device_limits(device: int, /) -> tuple[int, bool]: ...
def gather(device: int, stream: int, table: int, count: int, tiles: int, /) -> None: ...
def row_moments(
    device: int, stream: int, table: int, count: int, blocks: int, means: int, squares: int, /
) -> None: ...
def covariance_traces(
    device: int, stream: int, layers: int, count: int, squares: int, traces: int, /
) -> None: ...
def covariance_tiles(
    device: int,
    stream: int,
    table: int,
    count: int,
    blocks: int,
    in_double: bool,
    tile: int,
    means: int,
    workspace: int,
    /,
) -> None: ...
def covariance_finish(
    device: int,
    stream: int,
    table: int,
    count: int,
    blocks: int,
    in_double: bool,
    tile: int,
    workspace: int,
    /,
) -> None: ...
def covariance_shared_bytes(in_double: bool, tile: int, /) -> int: ...
def eigvalsh_warp(device: int, stream: int, layers: int, count: int, is_double: bool, /) -> None: ...
def tridiagonalise(
    device: int, stream: int, layers: int, count: int, is_double: bool, largest: int, cluster: int, /
) -> None: ...
def tridiagonalise_shared_bytes(m: int, is_double: bool, cluster: int, /) -> int: ...
def reduce_to_band(
    device: int, stream: int, layers: int, sizes: list[int], is_double: bool, cluster: int, /
) -> None: ...
def chase_bulges(
    device: int, stream: int, layers: int, count: int, is_double: bool, cluster: int, warps: int, /
) -> None: ...
def chase_warps(is_double: bool, /) -> int: ...
def panel_rows(is_double: bool, /) -> int: ...
def band_workspace_bytes(m: int, is_double: bool, /) -> int: ...
def sturm_eigenvalues(
    device: int, stream: int, table: int, count: int, blocks: int, is_double: bool, largest: int, /
) -> None: ...
def pivoted_cholesky(
    device: int, stream: int, layers: int, count: int, shared: int, cluster: int, /
) -> None: ...
def moment_sums(device: int, stream: int, table: int, count: int, blocks: int, sums: int, /) -> None: ...
def moment_means(
    device: int, stream: int, table: int, count: int, blocks: int, sums: int, means: int, apart: int, /
) -> None: ...
def moment_tiles(
    device: int,
    stream: int,
    table: int,
    count: int,
    blocks: int,
    in_double: bool,
    tile: int,
    means: int,
    workspace: int,
    /,
) -> None: ...
def moment_finish(
    device: int,
    stream: int,
    table: int,
    count: int,
    blocks: int,
    tile: int,
    apart: int,
    workspace: int,
    /,
) -> None: ...
def moment_shared_bytes(tile: int, /) -> int: ...
def solve_load(device: int, stream: int, systems: int, starts: int, count: int, blocks: int, /) -> None: ...
def solve_panel(
    device: int, stream: int, systems: int, starts: int, count: int, blocks: int, step: int, /
) -> None: ...
def solve_update(
    device: int, stream: int, systems: int, starts: int, count: int, blocks: int, step: int, /
) -> None: ...
def solve_backward(
    device: int, stream: int, systems: int, starts: int, count: int, blocks: int, step: int, /
) -> None: ...
def solve_store(device: int, stream: int, systems: int, starts: int, count: int, blocks: int, /) -> None: ...
