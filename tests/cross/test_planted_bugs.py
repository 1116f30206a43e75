# SPDX-License-Identifier: Apache-2.0
"""Bugs planted into a copy of the C++ kernels: the op's tests must fail, by a test that the right library passes."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

pytestmark = pytest.mark.long
ROOT = Path(__file__).parents[2]
LIBRARY = "libfastcnn_cpu.so"


class Bug(NamedTuple):
    tests: str  # stem of the tests
    file: str  # below csrc/cpu
    right: str  # stands there exactly once
    wrong: str


DEPTHWISE, PLANE = "depthwise_conv2d.kernel.cpp", "depthwise_conv2d_plane.h"
DIRECT, STORE = "conv_bn_act_direct.kernel.cpp", "conv_bn_act_store.kernel.cpp"
PROLOGUE = "conv_bn_act_prologue.h"
BUGS = {
    "activation-tail": Bug(
        "activation",
        "activation.kernel.cpp",
        "over_lanes<V>(count - i, [&]",
        "over_lanes<V>(count - i - 1, [&]",
    ),
    "activation-backward": Bug(
        "activation",
        "activation.kernel.cpp",
        "lanes.load(grad + i) * functor.derivative(lanes.load(x + i))",
        "lanes.load(x + i) * functor.derivative(lanes.load(grad + i))",
    ),
    "depthwise-not-flipped": Bug("depthwise_conv2d", DEPTHWISE, "w[args.flip ? taps - 1 - t : t]", "w[t]"),
    "depthwise-residual-tail": Bug(
        "depthwise_conv2d",
        DEPTHWISE,
        "if (residual != nullptr) v = v + V::load(residual + i, n);",
        "if (residual != nullptr) v = v + V::load(residual + i, n - 1);",
    ),
    "depthwise-stride-swapped": Bug(
        "depthwise_conv2d",
        PLANE,
        "h / g.stride_h * pitch + w / g.stride_w;",
        "h / g.stride_h * pitch + w / g.stride_h;",
    ),
    "depthwise-row-tail": Bug(
        "depthwise_conv2d",
        "rows.h",
        "V::load(src + i, int(count - i)).store(dst + i, int(count - i));",
        "V::load(src + i, int(count - i) - 1).store(dst + i, int(count - i));",
    ),
    "batch-norm-biased-running": Bug(
        "batch_norm_act",
        "batch_norm_act.kernel.cpp",
        "double(pixels > 1 ? pixels - 1 : 1)",
        "double(pixels > 1 ? pixels : 1)",
    ),
    "batch-norm-merge": Bug("batch_norm_act", "batch_norm_act.kernel.cpp", " + delta * delta * before * share", ""),
    "batch-norm-eps": Bug(
        "batch_norm_act",
        "batch_norm_act.kernel.cpp",
        "__builtin_sqrt(double(variance[c]) + args.eps)",
        "__builtin_sqrt(double(variance[c]))",
    ),
    "batch-norm-residual-after": Bug(
        "batch_norm_act",
        "batch_norm_act.kernel.cpp",
        "lanes.load(shift + c)) + lanes.load(r + c)), y + c);",
        "lanes.load(shift + c))) + lanes.load(r + c), y + c);",
    ),
    "conv-scale-row": Bug("conv_bn_act", STORE, "scale = V(to.scale[first_row + m]);", "scale = V(to.scale[m]);"),
    "conv-shift-row": Bug("conv_bn_act", STORE, "shift = V(to.shift[first_row + m]);", "shift = V(to.shift[m]);"),
    "conv-tile-row": Bug("conv_bn_act", "gemm.h", "here.shift = to.shift + row;", "here.shift = to.shift;"),
    "conv-tile-residual": Bug(
        "conv_bn_act", "gemm.h", "here.residual = to.residual + row * to.ldy;", "here.residual = to.residual;"
    ),
    "conv-tile-tail": Bug("conv_bn_act", "gemm.kernel.cpp", "if (!whole) value.store(y, n);", "if (!whole) value.store(y);"),
    "conv-depth-slices": Bug("conv_bn_act", "gemm.h", "part, c, slice > 0,", "part, c, false,"),
    "conv-padded-row": Bug(
        "conv_bn_act", DIRECT, "fill_zero(out + left + inside, pitch - left - inside);", "(void)pitch;"
    ),
    "conv-patch-columns": Bug("conv_bn_act", DIRECT, "fill_zero(out, first);", ""),
    "shuffle-concat-stride": Bug(
        "channel_shuffle", "channel_shuffle.kernel.cpp", "x1 + n * args.stride1 + c * HW", "x1 + n * C * HW + c * HW"
    ),
    "shuffle-any-groups": Bug(
        "channel_shuffle",
        "channel_shuffle.kernel.cpp",
        "y[i * groups + g] = x[g * depth + i];",
        "y[g * depth + i] = x[i * groups + g];",
    ),
    "shuffle-streams": Bug(
        "channel_shuffle",
        "channel_shuffle.kernel.cpp",
        "y[i * kStreams + s] = x[s * length + i];",
        "y[i * kStreams + s] = x[(kStreams - 1 - s) * length + i];",
    ),
    "pointwise-gate-of-a-pixel": Bug("pointwise_conv2d", PROLOGUE, "gate + n * C;", "gate;"),
    "pointwise-gate-of-a-panel": Bug("pointwise_conv2d", PROLOGUE, "prologue.gate[n * C + c]", "prologue.gate[c]"),
    "se-gate": Bug(
        "se_scale",
        "se_scale.kernel.cpp",
        "activate(args.gate, scale, scale, args.N * args.C);",
        "activate(args.activation, scale, scale, args.N * args.C);",
    ),
    "se-pool-gradient": Bug("se_scale", "se_scale.kernel.cpp", "A(1.0 / double(HW))", "A(1)"),
    "max-pool-last-of-equals": Bug(
        "max_pool2d",
        "max_pool2d.kernel.cpp",
        "place = select(x <= x, select(x > best, at, place), at);",
        "place = select(x <= x, select(best <= x, at, place), at);",
    ),
    "max-pool-drops-nan": Bug(
        "max_pool2d",
        "max_pool2d.kernel.cpp",
        "return select(x <= x, select(x > best, x, best), x); }",
        "return select(x > best, x, best); }",
    ),
    "max-pool-gradient-of-one-window": Bug(
        "max_pool2d",
        "max_pool2d.kernel.cpp",
        "sums[pixel] += to_accumulator",
        "sums[pixel] = to_accumulator",
    ),
    "pool-gradient": Bug(
        "global_avg_pool",
        "global_avg_pool.kernel.cpp",
        "const V share(1.0 / double(args.HW));",
        "const V share(1.0 / double(args.HW + 1));",
    ),
}


class Copy:
    """The sources in a folder of their own, built once as they are; ``right`` keeps that library."""

    def __init__(self, folder: Path) -> None:
        self.source, self.build, self.right = folder / "source", folder / "build", folder / "right"
        for name in ("csrc", "fastcnn"):
            shutil.copytree(ROOT / name, self.source / name, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
        shutil.copy(ROOT / "CMakeLists.txt", self.source)
        torch_folder = Path(torch.__file__).parent
        command = [
            "cmake",
            "-G",
            "Ninja",
            "-S",
            str(self.source),
            "-B",
            str(self.build),
            f"-DFASTCNN_TORCH={torch_folder}",
        ]
        subprocess.run(command, check=True, capture_output=True)
        self.compile()
        self.right.mkdir()
        shutil.copy(self.build / LIBRARY, self.right)

    def compile(self) -> None:
        done = subprocess.run(
            ["cmake", "--build", str(self.build), "--target", "fastcnn_cpu"], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stdout[-3000:]

    def plant(self, bug: Bug) -> None:
        path = self.source / "csrc" / "cpu" / bug.file
        text = path.read_text()
        assert text.count(bug.right) == 1, f"{bug.file} holds {text.count(bug.right)} times: {bug.right}"
        path.write_text(text.replace(bug.right, bug.wrong))
        self.compile()
        path.write_text(text)  # its new time has ninja compile it again for the next bug


def first_failure(library: Path, *tests: str) -> str | None:
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-x",
        "-q",
        "-rf",
        "-m",
        "not long and not large",
        "-p",
        "no:cacheprovider",
        *tests,
    ]
    environment = {**os.environ, "FASTCNN_LIBRARY_FOLDER": str(library), "FASTCNN_REQUIRE_EXT": "1", "COLUMNS": "400"}
    run = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    if run.returncode == 0:
        return None
    failed = re.search(r"^FAILED (\S+::.*?)(?: - .*)?$", run.stdout, re.MULTILINE)
    assert failed or run.returncode < 0, run.stdout[-3000:] + run.stderr[-3000:]
    return failed.group(1) if failed else f"killed by signal {-run.returncode}"


@pytest.fixture(scope="module")
def copied(tmp_path_factory):
    return Copy(tmp_path_factory.mktemp("planted"))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_found(name, copied):
    bug = BUGS[name]
    copied.plant(bug)
    killer = first_failure(copied.build, *map(str, sorted((ROOT / "tests" / "ops").glob(f"test_{bug.tests}*.py"))))
    assert killer is not None, "survived"
    if "::" in killer:
        assert first_failure(copied.right, killer) is None, f"{killer} fails with the right library too"
