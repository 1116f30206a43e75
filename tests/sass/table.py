# SPDX-License-Identifier: Apache-2.0
"""What the compiler made of every kernel: `python -m tests.sass.table`.

Registers, spills, shared memory, occupancy and the tensor-core instruction of each, as Markdown with a column for each
architecture; --write puts it between the markers `<!-- sass -->` of RESULTS.md. Computed from machine code: no speed
is claimed.
"""

from __future__ import annotations

import argparse
import re
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from fastcnn import _triton
from tests.sass import gate, occupancy

ARCHS = tuple(sorted((*gate.SHORT_ARCHS, *gate.LONG_ARCHS)))
TENSOR = ("UTCHMMA", "HGMMA", "HMMA")


class Figures(NamedTuple):
    registers: int
    local: int  # bytes of stack, and of instructions that reach local memory
    shared: int
    occupancy: float
    tensor: str


def _tensor(sass: str) -> str:
    return next((name for name in TENSOR if re.search(rf"\b{name}\b", sass)), "")


def _range(values: Iterable[float], form: str = "{:.0f}") -> str:
    low, high = form.format(min(values := list(values))), form.format(max(values))
    return low if low == high else f"{low}-{high}"


def cell(found: list[Figures]) -> str:
    """Registers, KiB of shared memory, occupancy, tensor-core instruction: of one kernel, or over its instances."""
    parts = [_range(f.registers for f in found)]
    if any(f.local for f in found):
        parts.append(f"**{max(f.local for f in found)} B local**")
    if any(f.shared for f in found):
        parts.append(_range((f.shared / 1024 for f in found), "{:.1f}") + " KiB")
    parts.append(_range(100 * f.occupancy for f in found) + " %")
    parts += sorted({f.tensor for f in found} - {""})
    return ", ".join(parts)


def threads_of(cubin: Path) -> dict[str, int]:
    """The most threads of a block, which __launch_bounds__ left in the machine code, by mangled name."""
    found = {}
    for part in re.split(r"\n\.nv\.info\.", gate._dump("-elf", cubin))[1:]:
        bounds = re.search(r"EIATTR_(?:MAX|REQ)_THREADS\s+Format:.*?Value:((?:\s*0x[0-9a-f]+)+)", part, re.DOTALL)
        if bounds:
            x, y, z = (int(number, 16) for number in bounds[1].split()[:3])
            found[part.split("\n", 1)[0].strip()] = x * y * z
    return found


def cuda_kernels(source: str, arch: int, folder: Path) -> dict[str, list[Figures]]:
    """Every instance of every kernel of tests/sass/<source>.cu, by the kernel's name."""
    kernels = gate.compile_kernels(source, arch, folder)
    threads = {gate._identity(name): n for name, n in threads_of(folder / f"{source}_{arch}.cubin").items()}
    found: dict[str, list[Figures]] = {}
    for kernel in kernels:
        block = threads[kernel.name, kernel.dtype, kernel.parameters]
        local = kernel.stack + 4 * kernel.count(r"\b(LDL|STL)\b")
        code = "\n".join(text for _, text in kernel.code)
        share = occupancy.occupancy(arch, kernel.registers, kernel.shared, block)
        found.setdefault(kernel.name, []).append(Figures(kernel.registers, local, kernel.shared, share, _tensor(code)))
    return found


def triton_kernels(arch: int, folder: Path) -> dict[str, list[Figures]]:
    """Every kernel that the gate compiles, by its name and the call that launches it."""
    from tests.sass import triton_code

    found = {}
    for label, call in triton_code.calls().items():
        for name, kernel in triton_code.compile_calls(arch, call, folder).items():
            local = kernel.usage["STACK"] + kernel.usage["LOCAL"] + 4 * kernel.count(r"\b(LDL|STL)\b")
            figures = Figures(kernel.usage["REG"], local, kernel.shared, kernel.occupancy, _tensor(kernel.sass))
            found[f"{name}, {label}"] = [figures]
    return found


def table(archs: tuple[int, ...], cuda: bool, triton: bool) -> str:
    rows: dict[str, dict[int, list[Figures]]] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for arch in archs:
            if cuda:
                for path in sorted(gate.HERE.glob("*.cu")):
                    for kernel, figures in cuda_kernels(path.stem, arch, folder).items():
                        rows.setdefault(f"CUDA `{kernel}`, {len(figures)} instances", {})[arch] = figures
            if triton:
                for kernel, figures in triton_kernels(arch, folder).items():
                    rows.setdefault("Triton `{}`{}{}".format(*kernel.partition(",")), {})[arch] = figures
    lines = [
        "Registers of a thread, local memory where there is any, shared memory of a block, share of a multiprocessor's "
        "warps that fit at once (by cuda_occupancy.h), tensor-core instruction. From machine code, not measured.",
        "",
        "| kernel | " + " | ".join(f"sm_{arch}" for arch in archs) + " |",
        "|---|" + "---|" * len(archs),
    ]
    for kernel, found in rows.items():
        lines.append(f"| {kernel} | " + " | ".join(cell(found[a]) if a in found else "" for a in archs) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", type=int, action="append", choices=ARCHS, help="all seven without it")
    parser.add_argument("--only", choices=("cuda", "triton"))
    parser.add_argument("--write", action="store_true", help="put the table into RESULTS.md")
    args = parser.parse_args()
    missing = {"cuda": gate.why_not(), "triton": _triton.why_not()}
    wanted = [args.only] if args.only else list(missing)
    for name in wanted:
        if missing[name]:
            raise SystemExit(f"no machine code of the {name} kernels: {missing[name]}")
    text = table(tuple(args.arch or ARCHS), "cuda" in wanted, "triton" in wanted)
    print(text)
    if args.write:
        from benchmarks.report import write_section

        write_section("sass", text)


if __name__ == "__main__":
    main()
