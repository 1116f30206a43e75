# SPDX-License-Identifier: Apache-2.0
"""Bugs planted in the Triton kernels: each is one replacement in one file, and the check that must notice."""

from __future__ import annotations

from typing import NamedTuple

EPILOGUE, HOST, REDUCE = "_epilogue.py", "_host.py", "_reduce.py"
DEPTHWISE, CONVOLUTION = "depthwise_conv2d.py", "conv_bn_act.py"
# the test that reads machine code: a module of pytest, not of the interpreter
SASS = "tests/sass/test_triton_sass.py"


class Mutant(NamedTuple):
    file: str
    right: str
    wrong: str
    module: str
    check: str

    def apply(self, text: str) -> str:
        assert self.right in text, f"{self.file} no longer holds: {self.right}"
        return text.replace(self.right, self.wrong)


MUTANTS: dict[str, Mutant] = {
    "missing-bias": Mutant(
        EPILOGUE, "    if bias is not None:\n        b_z", "    if spread is not None:\n        b_z",
        "test_depthwise_conv2d", "check_the_epilogue",
    ),
    "mask-of-a-tail": Mutant("activation.py", "m = o < count", "m = o < count + 1", "test_bytes", "check_activations"),
}  # fmt: skip
MUTANTS_AT_LENGTH: dict[str, Mutant] = {
    "mask-of-tail-channels": Mutant(
        EPILOGUE, "i_row * lanes + i_lane, m_row & m_lane,", "i_row * lanes + i_lane, m_row & (i_lane >= 0),",
        "test_bytes", "check_batch_norm",
    ),
    "channels-last-stride": Mutant(
        EPILOGUE, "        o *= x_s\n", "        o *= W\n", "test_depthwise_conv2d", "check_a_large_kernel"
    ),
    "kernel-sizes-swapped": Mutant(
        DEPTHWISE, "KH=kH, KW=kW, MULTIPLIER=multiplier", "KH=kW, KW=kH, MULTIPLIER=multiplier",
        "test_depthwise_conv2d", "check_a_large_kernel",
    ),
    "missing-residual": Mutant(
        EPILOGUE, "    if residual is not None:\n        b_z", "    if spread is not None:\n        b_z",
        "test_depthwise_conv2d", "check_the_epilogue",
    ),
    "gradient-of-h-swish": Mutant(
        EPILOGUE, "x * (1 / 3) + 0.5", "x * (1 / 6) + 0.5", "test_activation", "check_forward_and_backward"
    ),
    "a-nan-that-is-dropped": Mutant(
        EPILOGUE, "y = tl.where(x <= 0, 0.0, x)", "y = tl.maximum(x, 0.0)",
        "test_activation", "check_knots_and_special_values",
    ),
    "offset-of-32-bits-in-a-map": Mutant(
        EPILOGUE, "(tl.program_id(0) // blocks).to(tl.int64) * ROWS", "(tl.program_id(0) // blocks) * ROWS",
        "test_large", "check_dense_maps",
    ),
    "offset-of-32-bits-in-a-slice": Mutant(
        CONVOLUTION, "y += n * y_image", "y += n.to(tl.int32) * y_n.to(tl.int32)",
        "test_large", "check_slices_of_wide_maps",
    ),
    "wrong-group": Mutant(
        CONVOLUTION, "    i_o += group * O\n", "", "test_conv_bn_act", "check_groups"
    ),
    "weight-of-the-wrong-group": Mutant(
        CONVOLUTION, "weight += base * O * (KH * KW)", "weight += 0 * base", "test_conv_bn_act", "check_groups"
    ),
    "eps": Mutant(
        EPILOGUE, "tl.rsqrt(b_invstd + number(eps_bits, COMPUTE))", "tl.rsqrt(b_invstd)",
        "test_batch_norm_act", "check_eps",
    ),
    "gate-of-squeeze-and-excitation": Mutant(
        "se_scale.py", "activate(b_z, GATE)", "activate(b_z, ACTIVATION)", "test_se_scale", "check_forward_and_backward"
    ),
    "a-tile-left-out-of-a-sum": Mutant(
        REDUCE, "for s in range(0, S, PARTS):", "for s in range(PARTS, S, PARTS):",
        "test_conv_bn_act_training", "check_many_pixels_are_summed_in_parts",
    ),
    "chunks-merged-with-the-wrong-weight": Mutant(
        "batch_norm_act.py", "d * d * b_count, 0)", "d * d, 0)", "test_batch_norm_act", "check_running_statistics"
    ),
    "tiles-merged-as-if-each-were-the-first": Mutant(
        "batch_norm_act.py", "        seen += count\n", "", "test_long_sums", "check_batch_norm"
    ),
    "border": Mutant(
        EPILOGUE, "    m = m & (h < H) & (w < W)\n", "    m = m & (h < H)\n",
        "test_depthwise_conv2d", "check_the_epilogue",
    ),
    "same-padding-on-the-wrong-side": Mutant(
        HOST, "found += [total // 2, total - total // 2]", "found += [total - total // 2, total // 2]",
        "test_conv_bn_act", "check_paddings",
    ),
    "top-is-left": Mutant(
        CONVOLUTION, "*dilation, padding[2], padding[0], KH=kH", "*dilation, padding[0], padding[2], KH=kH",
        "test_conv_bn_act", "check_paddings",
    ),
    "taps-that-a-stride-skips": Mutant(
        EPILOGUE, " & (h % stride_h == 0) & (w % stride_w == 0)", "", "test_conv_bn_act", "check_gradient_of_a_stride"
    ),
    "gate-of-the-first-image": Mutant(
        CONVOLUTION, "o = (i_n * (C * tl.num_programs(1)))[:, None]", "o = (i_n * 0)[:, None]",
        "test_conv_bn_act", "check_prologues_and_slices",
    ),
    "shift-on-what-is-padded": Mutant(
        CONVOLUTION, "tl.where(m, activate(b_p, PROLOGUE), 0.0)", "activate(b_p, PROLOGUE)",
        "test_conv_bn_act", "check_prologues_and_slices",
    ),
    "slice-with-the-step-of-x": Mutant(
        CONVOLUTION, "steps(y_n, y_s, VY, INDEX)", "steps(x_n, x_s, VX, INDEX)",
        "test_conv_bn_act", "check_prologues_and_slices",
    ),
    "last-of-equal-maxima": Mutant(
        "max_pool2d.py", "before = (t < own)[:, None]", "before = (t > own)[:, None]",
        "test_max_pool2d", "check_ties_and_special_values",
    ),
    "pool-drops-nan": Mutant(
        "max_pool2d.py", "(b > b_best) | (b != b)", "b > b_best", "test_max_pool2d", "check_ties_and_special_values"
    ),
    "pool-slice-with-the-step-of-x": Mutant(
        "max_pool2d.py", "y_image, y_n, y_s = steps(y_n, y_s, VY, INDEX)\n    x += n * x_image\n    y +=",
        "y_image, y_n, y_s = x_image, x_n, x_s\n    x += n * x_image\n    y +=", "test_max_pool2d", "check_slices",
    ),
    "halves-swapped": Mutant(
        "channel_shuffle.py", "tl.interleave(b_1, b_2)", "tl.interleave(b_2, b_1)",
        "test_channel_shuffle", "check_concat",
    ),
    "x-read-twice": Mutant(
        "batch_norm_act.py", "b_z = (tl.load(x + o, mask=m).to(COMPUTE) - b_mean)",
        "b_z = (0.5 * (tl.load(x + o, mask=m) + tl.load(x + o, mask=m)).to(COMPUTE) - b_mean)",
        "test_bytes", "check_batch_norm",
    ),
    "tf32-in-float32": Mutant(
        "_configs.py", 'else "ieee"', 'else "tf32"', SASS, "test_float32_stays_float32"
    ),
}  # fmt: skip
