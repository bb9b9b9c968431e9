"""Compile the Triton kernels for sm_90, which needs no GPU, and print what came out as JSON."""

from __future__ import annotations

import json
import re
import subprocess
import tempfile

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from slimfast.kernels import Moments
from slimfast.kernels.backends import damped_systems, moment_layers
from slimfast.kernels.backends.triton import (
    covariance_kernels,
    gather_kernels,
    moment_kernels,
    moment_launches,
    operand_kernels,
    product_kernels,
    schedule,
    solve_kernels,
)

POINTERS = {"vectors": "*fp64", "summary": "*fp64", "sums": "*fp64", "edge_parts": "*fp64", "count": "i32"}
POINTERS |= {"means": "*fp64", "apart": "*fp64", "squares": "*fp64", "one": "fp32", "step": "i32"}


def compiled(kernel, constants, *, partial="*fp32", warps=4, stages=3):
    """What a test asks about: instructions, shared memory, spilled bytes, where each product starts."""
    names = [name for name in kernel.arg_names if name not in constants]
    signature = {name: POINTERS.get(name, "*i64") for name in names} | {"partial": partial}
    signature = {name: signature.get(name, "constexpr") for name in kernel.arg_names}
    aligned = {
        (i,): [["tt.divisibility", 16]] for i, name in enumerate(signature) if signature[name].startswith("*")
    }
    built = triton.compile(
        ASTSource(kernel, signature=signature, constexprs=constants, attrs=aligned),
        target=GPUTarget("cuda", 90, 32),
        options={"num_warps": warps, "num_stages": stages, "enable_fp_fusion": True},
    )
    ptx = built.asm["ptx"]
    return {
        "wgmma": sorted(set(re.findall(r"wgmma\.mma_async\.sync\.aligned\.m\d+n\d+k\d+\.(\S+)", ptx))),
        "mma": sorted(set(re.findall(r"\bmma\.sync\.aligned\.m\d+n\d+k\d+\.row\.col\.(\S+)", ptx))),
        "wide_copies": len(re.findall(r"cp\.async\.cg\.shared\.global \[[^]]*\], \[[^]]*\], 0x10", ptx)),
        "shared": built.metadata.shared,
        "stack": stack(built.asm["cubin"]),
        "spilled_in_products": spilled_in_products(built.asm["cubin"]),
        "starts": re.findall(r"warp_group_dot %\S+, %\S+, %([a-z]+)", built.asm["ttgir"]),
    }


def cuobjdump(cubin, *options):
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tool = triton.knobs.nvidia.cuobjdump.path
        return subprocess.run([tool, *options, file.name], capture_output=True, check=True, text=True).stdout


def stack(cubin):
    """Bytes of local memory a thread needs."""
    return int(re.search(r"STACK:(\d+)", cuobjdump(cubin, "--dump-resource-usage"))[1])


def spilled_in_products(cubin):
    """Share of accesses to local memory in every innermost loop with tensor-core instructions."""
    lines = [
        (int(match[1], 16), match[2])
        for match in re.finditer(r"/\*([0-9a-f]{4,5})\*/\s+([^;]*);", cuobjdump(cubin, "--dump-sass"))
    ]
    jumps = [
        (int(target[1], 16), at) for at, text in lines if (target := re.search(r"BRA 0x([0-9a-f]+)", text))
    ]
    loops = [(start, end) for start, end in jumps if start < end]
    found = []
    for start, end in loops:
        if any(start <= inner and last < end for inner, last in loops if (inner, last) != (start, end)):
            continue
        body = [text for at, text in lines if start <= at <= end]
        if any("MMA" in text for text in body):
            found.append(sum("LDL" in text or "STL" in text for text in body) / len(body))
    return found


def gram(source, *, centre, big):
    """The Gram kernel as the backend launches it for this dtype, on tiles of one or the other size."""
    exact = source in (torch.bfloat16, torch.float16)
    compute = torch.float64 if source == torch.float64 else torch.float32
    tiles = schedule.choose_tiles(4096 if big else 64, compute, exact=exact)
    element = moment_kernels.ELEMENT
    constants = {"ELEMENT": element[source], "COMPUTE": element[compute], "OUT": element[compute]}
    constants |= {"BLOCK": tiles.block, "DEPTH": tiles.depth, "PRODUCTS": covariance_kernels.PRODUCTS}
    constants |= {"EXACT": exact, "CENTRE": centre, "WIDEN": False}
    partial = "*fp64" if compute == torch.float64 else "*fp32"
    return compiled(
        covariance_kernels.gram_kernel, constants, partial=partial, warps=tiles.warps, stages=tiles.stages
    )


def products(dtype, *, centre=True):
    """The products of streaming moments as the backend launches them, on the largest tiles."""
    layer = moment_layers.moment_layers(
        [torch.zeros(512, 8, dtype=dtype)],
        [None],
        [Moments(0, torch.zeros(512), torch.zeros(1))],
        [torch.float64 if dtype == torch.float64 else torch.float32],
    )[0]
    tiles = moment_launches._tiles_of(layer)
    element = moment_kernels.ELEMENT
    constants = {"ELEMENT_X": element[dtype], "ELEMENT_Y": element[dtype], "BLOCK": tiles.block}
    constants |= {"COMPUTE": tl.float64 if dtype == torch.float64 else tl.float32, "DEPTH": tiles.depth}
    constants |= {"LENGTH": product_kernels.PART, "PRECISION": product_kernels.PRECISION, "WIDEN": False}
    constants |= {"EXACT": dtype == torch.bfloat16, "CENTRE": centre}
    return compiled(
        product_kernels.products_kernel, constants, partial="*fp64", warps=tiles.warps, stages=tiles.stages
    )


def main():
    moments = {"ELEMENT": tl.bfloat16, "BLOCK": moment_kernels.MOMENT_POSITIONS}
    summary = {"BLOCKS": moment_kernels.SUMMARY_BLOCKS, "COLUMNS": schedule.SUMMARY_COLUMNS}
    added = {"OUT": tl.float32, "BLOCK": 128, "ROWS": covariance_kernels.SUM_ROWS, "EXACT": True}
    sums = {"ELEMENT": tl.bfloat16, "VARS": operand_kernels.SUM_VARIABLES}
    sums |= {"BLOCK": operand_kernels.SUM_POSITIONS}
    finish = {"BLOCK": 128, "ROWS": product_kernels.FINISH_ROWS, "EXACT": True}
    told = {
        "products bf16": products(torch.bfloat16, centre=False),
        "products f32": products(torch.float32),
        "products f64": products(torch.float64),
        **{
            name: compiled(getattr(solve_kernels, f"{name}_kernel"), {"BLOCK": damped_systems.BLOCK}, warps=8)
            for name in ("panel", "update", "backward")
        },
        "sums": compiled(operand_kernels.sums_kernel, sums),
        "means": compiled(operand_kernels.means_kernel, {"VARS": operand_kernels.MEAN_VARIABLES}),
        "finish": compiled(product_kernels.finish_kernel, finish, partial="*fp64"),
        "gram bf16": gram(torch.bfloat16, centre=False, big=True),
        "gram f32": gram(torch.float32, centre=True, big=True),
        "gram f64": gram(torch.float64, centre=True, big=True),
        "moments": compiled(moment_kernels.moments_kernel, moments),
        "summary": compiled(moment_kernels.summary_kernel, summary),
        "sum": compiled(covariance_kernels.sum_kernel, added),
        "gather": compiled(gather_kernels.gather_kernel, {"TILE": gather_kernels.TILE}),
    }
    print(json.dumps(told))


if __name__ == "__main__":
    main()
