# SPDX-License-Identifier: Apache-2.0
"""The first person with a GPU: `make bench-gpu`, or `python -m benchmarks.gpu`, in under 30 minutes.

Correctness first (`pytest -m gpu`); then kernels, then networks, each within its own time; then results/<gpu name>.*.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

import fastcnn
from benchmarks import implementations, report
from benchmarks.gpu import kernels, nets
from benchmarks.gpu import report as gpu_report
from benchmarks.gpu.timer import Budget, CudaClock, copy_bandwidth

MINUTES = {"gate": 5.0, "kernels": 7.0, "networks": 15.0}
MODELS = ("mobilenet_v2", "efficientnet_b0", "mobilenet_v3_large", "shufflenet_v2_x1_0", "mobilenet_v1_x1_0",
          "efficientnet_lite0")  # fmt: skip
KERNEL_BATCH = 64
DTYPES = (torch.float16, torch.bfloat16)


def missing() -> str | None:
    """Why there is nothing to measure here, in one line; None when there is."""
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if not torch.cuda.is_available():
        return f"no CUDA device (torch {torch.__version__} finds none)"
    absent = [name for name in ("matplotlib", "torchvision", "pytest") if importlib.util.find_spec(name) is None]
    if absent:
        return f"{', '.join(absent)} (pip install 'fastcnn[bench]')"
    return None


def gate(minutes: float, command: Sequence[str] | None = None) -> tuple[bool, str]:
    """Whether `pytest -m gpu` passes with at least one test, and its last line."""
    command = command or (sys.executable, "-m", "pytest", str(report.ROOT / "tests"), "-m", "gpu", "-q", "--maxfail=20")
    try:
        done = subprocess.run(command, cwd=report.ROOT, capture_output=True, text=True, timeout=60 * minutes,
                              check=False)  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, f"not through after {minutes:g} minutes"
    lines = done.stdout.strip().splitlines()
    last = lines[-1].strip("= ") if lines else done.stderr.strip()[-200:]
    passed = re.search(r"\b([1-9]\d*) passed", last)
    if done.returncode == 0 and passed:
        return True, last
    if done.returncode in (0, 5):
        return False, f"no GPU test ran: {last}"
    return False, "\n".join([*(line for line in lines if line.startswith(("FAILED", "ERROR"))), last])


def machine(bandwidth: float) -> dict[str, object]:
    properties = torch.cuda.get_device_properties(0)
    driver = subprocess.run(("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "-i", "0"),
                            capture_output=True, text=True, check=False).stdout.strip()  # fmt: skip
    return {
        "gpu": properties.name,
        "compute capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "L2 MiB": properties.L2_cache_size >> 20,
        "byte roof GB/s (a copy of 1 GiB)": round(bandwidth / 1e9),
        "driver": driver,
        "torch": torch.__version__,
        "CUDA": torch.version.cuda,
        "cuDNN": torch.backends.cudnn.version(),
        "Triton": fastcnn._triton.version(),
        "TensorRT": nets.trt.installed(),
        "fastcnn": fastcnn.__version__,
    }


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=report.ROOT / "results")
    parser.add_argument("--scale", type=float, default=1.0, help="of each part's minutes: %s" % MINUTES)
    parser.add_argument("--model", action="append", help=f"repeatable (default: {', '.join(MODELS)})")
    args = parser.parse_args(arguments)
    reason = missing()
    if reason is not None:
        print(f"bench-gpu: missing: {reason}", file=sys.stderr)
        return 1
    minutes = {part: args.scale * m for part, m in MINUTES.items()}
    print(f"gate: pytest -m gpu, at most {minutes['gate']:g} minutes", flush=True)
    passed, line = gate(minutes["gate"])
    print(line, flush=True)
    if not passed:
        print("bench-gpu: the gate failed, nothing is timed", file=sys.stderr)
        return 1
    with torch.backends.cudnn.flags(enabled=True, benchmark=True, allow_tf32=torch.backends.cudnn.allow_tf32):
        run = measure(args.model or list(MODELS), minutes, line, args.out)
    print(gpu_report.kernel_summary(run.kernels))
    print(gpu_report.net_table(run.nets))
    print("written: " + ", ".join(str(path) for path in gpu_report.write(run, args.out)))
    if run.wrong:
        print(f"bench-gpu: {len(run.wrong)} results are wrong and not timed", file=sys.stderr)
    return 1 if run.wrong else 0


def measure(models: Sequence[str], minutes: dict[str, float], gate_line: str, out: Path) -> gpu_report.Run:
    clock = CudaClock()
    bandwidth = copy_bandwidth(clock, "cuda")
    run = gpu_report.Run(machine(bandwidth), gate_line)
    budget = Budget(60 * minutes["kernels"])
    for i, dtype in enumerate(DTYPES):
        share = budget.share(1 / (len(DTYPES) - i))
        calls = kernels.cases(implementations.OPS, models, KERNEL_BATCH)
        rows, left_out = kernels.measure(calls, dtype, "cuda", clock, bandwidth, share)
        run.kernels += rows
        run.left_out[f"kernels {str(dtype)[6:]}"] = left_out
        gpu_report.write(run, out)  # what is measured is kept, whatever comes next
        print(f"kernels {str(dtype)[6:]}: {len(rows)} rows, {left_out} calls left out", flush=True)
    budget = Budget(60 * minutes["networks"])
    run.nets, run.left_out["networks"] = nets.measure(models, "cuda", clock, bandwidth, budget)
    return run


if __name__ == "__main__":
    sys.exit(main())
