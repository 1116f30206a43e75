# SPDX-License-Identifier: Apache-2.0
"""Bugs planted in the CUDA sources: each is one replacement in one file, and the tests that must notice."""

from __future__ import annotations

from typing import NamedTuple

TILE, GENERIC = "csrc/cuda/depthwise_conv2d_tile.cuh", "csrc/cuda/depthwise_conv2d.cuh"
ELEMENTWISE, EPILOGUE = "csrc/cuda/activation.cuh", "csrc/common/epilogue.h"
BATCH_NORM, SUMS = "csrc/cuda/batch_norm_act.cuh", "csrc/cuda/batch_norm_act_sums.cuh"
NORM_BACKWARD = "csrc/cuda/batch_norm_act_backward.cuh"
NORM_TESTS, NORM_BACKWARD_TESTS = ("test_batch_norm_act.py",), ("test_batch_norm_act_backward.py",)
BACKWARD = "csrc/cuda/depthwise_conv2d_backward.cuh"
BACKWARD_TILE = "csrc/cuda/depthwise_conv2d_backward_tile.cuh"
BACKWARD_TESTS = ("test_depthwise_backward.py", "test_depthwise_backward_tile.py")
SUMS_TESTS = ("test_depthwise_sums.py",)
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
    "tail-of-a-vector": Mutant(ELEMENTWISE, "first + kLanes <= count)", "first < count)", ("test_hardswish.py",)),
    "misaligned-h-swish": Mutant(ELEMENTWISE, "is_aligned<kVectorBytes>(x) && ", "", ("test_hardswish.py",)),
    "silu-without-its-slope": Mutant(EPILOGUE, "s * (A(1) + x * (A(1) - s))", "s", ("test_activation.py",)),
    "no-derivative": Mutant(
        "csrc/cuda/epilogue.cuh", "= function.derivative(lanes[i]);", "= A(1);", ("test_activation.py",)
    ),
    "gradient-without-grad": Mutant(
        ELEMENTWISE, "value[i] *= factor[i];", "value[i] *= 1;", ("test_activation.py",)
    ),
    "scale-of-another-channel": Mutant(
        BATCH_NORM, "load<kTogether>(array + c + i * kTogether", "load<kTogether>(array + c", NORM_TESTS
    ),
    "rows-beyond-the-last": Mutant(
        BATCH_NORM, "return inside && row + k * p.step < p.rows;", "return inside;", NORM_TESTS
    ),
    "residual-left-out": Mutant(BATCH_NORM, "value[e] += more[e];", "value[e] += 0 * more[e];", NORM_TESTS),
    "misaligned-batch-norm": Mutant(
        BATCH_NORM, " && (is_aligned<kVectorBytes>(pointers) && ...)", " && (sizeof...(pointers) > 0)", NORM_TESTS
    ),
    "sums-without-a-barrier": Mutant(SUMS, "2;\n      __syncthreads();\n", "2;\n", NORM_TESTS),
    "an-odd-row-left-out": Mutant(SUMS, "rows = (rows + 1) / 2)", "rows = rows / 2)", NORM_TESTS),
    "sums-about-zero": Mutant(SUMS, "center[v] *= share;", "center[v] = A(0);", NORM_TESTS),
    "segments-of-one-mean": Mutant(SUMS, "deviations + apart * apart * count(i)", "deviations", NORM_TESTS),
    "half-a-warp": Mutant(SUMS, "int lanes = 16; lanes > 0", "int lanes = 8; lanes > 0", NORM_TESTS),
    "biased-running-variance": Mutant(SUMS, "pixels > 1 ? pixels - 1 : 1", "pixels > 1 ? pixels : 1", NORM_TESTS),
    "slope-without-the-variance": Mutant(
        NORM_BACKWARD, "scale * invstd * invstd * product", "scale * invstd * product", NORM_BACKWARD_TESTS
    ),
    "gradient-of-x-for-the-residual": Mutant(
        NORM_BACKWARD, "if (t.residual != nullptr) {\n      A more", "if (false) {\n      A more", NORM_BACKWARD_TESTS
    ),
    "mean-left-in": Mutant(NORM_BACKWARD, "gz[e] * (value[e] - mean[e])", "gz[e] * value[e]", NORM_BACKWARD_TESTS),
    "border": Mutant(
        TILE, "first_column + j >= 0 && first_column + j < W;", "first_column + j >= 0 && first_column + j <= W;"
    ),
    "halo": Mutant(TILE, "ih >= first_row && ih < p.H", "ih >= first_row && ih <= p.H"),
    "tail-channel": Mutant(TILE, "own < of_stretch && group < groups && position", "own < of_stretch && position"),
    "stride": Mutant(TILE, "iw0 = ow0 * T::kStride - p.pad_left", "iw0 = ow0 - p.pad_left"),
    "window-moves-by-one": Mutant(TILE, "window[i][j] = window[i + T::kStride][j]", "window[i][j] = window[i + 1][j]"),
    "rows-of-the-last-tile": Mutant(TILE, "own_rows = live ? min(p.rows, p.Ho - oh0) : 0", "own_rows = live ? p.rows : 0"),
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
    "gradient-of-the-wrong-quad": Mutant(TILE, "quad_of(grad[o], quad)", "quad_of(grad[o], 0)", BACKWARD_TESTS),
    "backward-divides-by-stride": Mutant(BACKWARD, "oh * g.stride_h == up && ", "", BACKWARD_TESTS),
    "backward-walk-into-the-next-image": Mutant(BACKWARD, "if (oh >= g.Ho) oh -= g.Ho, ++n;", "", BACKWARD_TESTS),
    "backward-last-slice": Mutant(
        BACKWARD, "inside && base + down < slices", "inside && base + down + 1 < slices", BACKWARD_TESTS
    ),
    "backward-filter-not-turned": Mutant(
        BACKWARD_TILE, "weights[r * T::kKernel + q]", "weights[T::kTaps - 1 - r * T::kKernel - q]", BACKWARD_TESTS
    ),
    "backward-halo": Mutant(BACKWARD_TILE, "p.Wo, row0 - kMore", "p.Wo, row0 - kMore + 1", BACKWARD_TESTS),
    "backward-rows-of-the-next-tile": Mutant(
        BACKWARD_TILE, "i < p.rows * strips;", "i < T::kRows * strips;", BACKWARD_TESTS
    ),
    "backward-tile-before-it-is-used-up": Mutant(
        BACKWARD_TILE, "    __syncthreads();\n  }\n", "  }\n  __syncthreads();\n", BACKWARD_TESTS
    ),
    "sums-beyond-the-row": Mutant(TILE, "wanted && ow0 + i / 4 < p.Wo", "wanted", SUMS_TESTS),
    "sums-of-two-images": Mutant(TILE, "last_position = first + p.of_image;", "last_position += 0;", SUMS_TESTS),
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
MAX_POOL, MAX_POOL_TESTS = "csrc/cuda/max_pool2d.cuh", ("test_max_pool2d.py",)
MUTANTS_AT_LENGTH |= {
    "pool-halo": Mutant(MAX_POOL, "h >= 0 && h < p.H && w", "h >= 0 && h <= p.H && w", MAX_POOL_TESTS),
    "pool-drops-nan": Mutant(
        MAX_POOL, "!(value[e] <= best[e]) && best[e] == best[e]", "value[e] > best[e]", MAX_POOL_TESTS
    ),
    "last-of-equal-maxima": Mutant(MAX_POOL, "tap < own ?", "tap > own ?", MAX_POOL_TESTS),
    "pool-strips-overlap": Mutant(
        MAX_POOL, "int(rest % p.strips) * p.rows", "int(rest % p.strips)", MAX_POOL_TESTS
    ),
    "a-window-too-few": Mutant(
        MAX_POOL, "down = (p.kH - 1) / p.stride_h", "down = (p.kH - 2) / p.stride_h", MAX_POOL_TESTS
    ),
    "misaligned-pool": Mutant(
        MAX_POOL, "is_aligned<kVectorBytes>(x) && is_aligned<kVectorBytes>(y)", "is_aligned<kVectorBytes>(y)", MAX_POOL_TESTS
    ),
}
