"""The CUDA kernels' entries. Addresses are integers; tables and layouts are described in ``csrc/cuda/*.hpp``.

Every launch takes (device, stream) first and returns before the kernel has run; ``RuntimeError`` names the
kernel that could not be launched.
"""

GATHER_TILE: int
GATHER_FIELDS: int
COVARIANCE_SMALL_TILE: int
COVARIANCE_LARGE_TILE: int
COVARIANCE_CHUNK: int
MOMENT_ROWS: int
WARP_MATRIX: int
MAX_CLUSTER: int
IN_SHARED: int
VECTORS_IN_SHARED: int
IN_WORKSPACE: int
STURM_VALUES: int

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
def eigvalsh_warp(device: int, stream: int, layers: int, count: int, is_double: bool, /) -> None: ...
def tridiagonalise(
    device: int,
    stream: int,
    layers: int,
    count: int,
    is_double: bool,
    largest: int,
    cluster: int,
    placement: int,
    /,
) -> None: ...
def sturm_eigenvalues(
    device: int, stream: int, table: int, count: int, blocks: int, is_double: bool, largest: int, /
) -> None: ...
def tridiagonalise_shared_bytes(m: int, is_double: bool, cluster: int, placement: int, /) -> int: ...
def tridiagonalise_workspace_bytes(m: int, is_double: bool, cluster: int, /) -> int: ...
def pivoted_cholesky(
    device: int, stream: int, layers: int, count: int, is_double: bool, cluster: int, /
) -> None: ...
