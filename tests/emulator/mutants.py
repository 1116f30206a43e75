# SPDX-License-Identifier: Apache-2.0
"""Bugs planted in the CUDA sources: each is one replacement in one file, and the tests that must notice."""

from __future__ import annotations

from typing import NamedTuple

TILE, GENERIC = "csrc/cuda/depthwise_conv2d_tile.cuh", "csrc/cuda/depthwise_conv2d.cuh"
HARDSWISH, EPILOGUE = "csrc/cuda/hardswish.cuh", "csrc/common/epilogue.h"
DEPTHWISE_TESTS = ("test_depthwise_conv2d.py", "test_depthwise_bytes.py")


class Mutant(NamedTuple):
    file: str
    right: str
    wrong: str
    tests: tuple[str, ...] = DEPTHWISE_TESTS
    sanitize: bool = False  # only the sanitizers see it

    def apply(self, text: str) -> str:
        assert self.right in text, f"{self.file} no longer holds: {self.right}"
        return text.replace(self.right, self.wrong)


MUTANTS: dict[str, Mutant] = {
    "wrong-activation-gradient": Mutant(
        EPILOGUE, "x * A(1.0 / 3) + A(0.5)", "x * A(1.0 / 6) + A(0.5)", ("test_hardswish.py",)
    ),
    "barrier": Mutant(TILE, "  __syncthreads();\n", ""),
}
# each takes a compilation: for the long form
MUTANTS_AT_LENGTH: dict[str, Mutant] = {
    "tail-of-a-vector": Mutant(HARDSWISH, "first + kLanes <= count)", "first < count)", ("test_hardswish.py",)),
    "misaligned-h-swish": Mutant(HARDSWISH, "is_aligned<kVectorBytes>(x) && ", "", ("test_hardswish.py",)),
    "border": Mutant(
        TILE, "row_inside && first_column + j >= 0 && first_column + j < W;", "row_inside && first_column + j >= 0;"
    ),
    "halo": Mutant(TILE, "ih >= first_row && ih < p.H", "ih >= first_row && ih <= p.H"),
    "tail-channel": Mutant(TILE, "group >= groups || ", ""),
    "stride": Mutant(TILE, "iw0 = ow0 * T::kStride - p.pad_left", "iw0 = ow0 - p.pad_left"),
    "window-moves-by-one": Mutant(TILE, "window[i][j] = window[i + T::kStride][j]", "window[i][j] = window[i + 1][j]"),
    "rows-of-the-last-tile": Mutant(TILE, "rows = min(p.rows, p.Ho - oh0)", "rows = p.rows"),
    "shared-overflow": Mutant(
        TILE, "[T::kTaps + 1][T::kQuads]", "[T::kTaps][T::kQuads]", ("test_depthwise_conv2d.py",), True
    ),
    "misalignment": Mutant(
        GENERIC, "g.C % kVectorLanes<S> == 0 && is_aligned<kVectorBytes>(t.x) &&", "g.C % kVectorLanes<S> == 0 &&"
    ),
    "channels-last-stride": Mutant(
        GENERIC, "((n * g.H + ih) * g.W + iw) * g.C + c", "((n * g.W + iw) * g.H + ih) * g.C + c"
    ),
    "offset-of-32-bits": Mutant(GENERIC, "const int64_t at =", "const int at ="),
    "missing-bias": Mutant(TILE, "if (t.shift != nullptr)", "if (t.shift == t.scale)"),
    "missing-scale": Mutant(TILE, "value[e] * scale[0]", "value[e]"),
    "residual-of-the-wrong-quad": Mutant(TILE, "quad_of(residual[o], quad)", "quad_of(residual[o], 0)"),
    "multiplier-order": Mutant(GENERIC, "o / (g.O / g.C)", "o % g.C"),
    "a-strip-of-one": Mutant(TILE, "kStride == 1 ? 4 : 2;", "kStride == 1 ? 1 : 2;", ("test_depthwise_bytes.py",)),
    "a-row-at-a-time": Mutant(
        TILE, "kRows = kKernel == 3 ? 7", "kRows = kKernel == 3 ? 1", ("test_depthwise_bytes.py",)
    ),
}
SHUFFLE, SHUFFLE_TESTS = "csrc/cuda/channel_shuffle.cuh", ("test_channel_shuffle.py",)
MUTANTS_AT_LENGTH |= {
    "shuffle-mask": Mutant(SHUFFLE, "_sync(0xffffffffu, odd", "_sync(0x7fffffffu, odd", SHUFFLE_TESTS),
    "no-exchange": Mutant(SHUFFLE, "(kWide) exchange_with", "(false) exchange_with", SHUFFLE_TESTS),
    "shuffle-barrier": Mutant(SHUFFLE, "  __syncthreads();\n", "", SHUFFLE_TESTS),
    "slice-stride-of-x2": Mutant(SHUFFLE, "pixel * t.stride2 + c", "pixel * t.stride1 + c", SHUFFLE_TESTS),
    "misaligned-slice": Mutant(SHUFFLE, "t.stride1 * kSize, t.stride2 * kSize, half", "half", SHUFFLE_TESTS),
    "shuffle-offset-of-32-bits": Mutant(SHUFFLE, "t.x1 + n * t.stride1;", "t.x1 + int(n * t.stride1);", SHUFFLE_TESTS),
    "staged-wrap": Mutant(SHUFFLE, "if (++i == depth) i = 0, from += C - depth;", "++i;", SHUFFLE_TESTS),
}
POOL, POOL_TESTS = "csrc/cuda/global_avg_pool.cuh", ("test_global_avg_pool.py",)
MUTANTS_AT_LENGTH |= {
    "edge-of-a-plane": Mutant(POOL, "    add_edge(lane, lane < head);\n", "", POOL_TESTS),
    "pool-barrier": Mutant(POOL, "    __syncthreads();\n", "", POOL_TESTS),
    "shuffles-stop-early": Mutant(POOL, "step > 0; step /= 2", "step > 1; step /= 2", POOL_TESTS),
    "cut-between-planes": Mutant(POOL, "(e < t.cut ? pair[0] : pair[1])", "pair[0]", POOL_TESTS),
    "odd-number-of-rows": Mutant(POOL, "const int half = (active + 1) / 2", "const int half = active / 2", POOL_TESTS),
    "tile-of-the-first-image": Mutant(POOL, "(t.n * p.tiles + t.tile) * p.C", "t.tile * p.C", POOL_TESTS),
}
SE, SE_TESTS = "csrc/cuda/se_scale.cuh", ("test_se_scale.py",)
MUTANTS_AT_LENGTH |= {
    "se-barrier": Mutant(SE, "= sum;\n    __syncthreads();\n", "= sum;\n", SE_TESTS),
    "sums-of-one-tile": Mutant(SE, "tile < sums.tiles", "tile < 1", SE_TESTS),
    "a-part-too-short": Mutant(SE, "(s.C + parts - 1) / parts", "s.C / parts", SE_TESTS),
    "wrong-gate-gradient": Mutant(SE, "slope(s.gate, z2)", "slope(s.activation, z2)", SE_TESTS),
    "gradient-without-the-mean": Mutant(SE, "c, grad * share, leads);", "c, grad, leads);", SE_TESTS),
    "bias-of-one-image": Mutant(SE, "left * right : left;", "left * right : left * (n == 0);", SE_TESTS),
    "scale-of-the-first-image": Mutant(SE, "load_lanes(scale + t.n * p.C + t.c", "load_lanes(scale + t.c", SE_TESTS),
}
