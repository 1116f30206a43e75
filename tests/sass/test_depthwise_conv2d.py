# SPDX-License-Identifier: Apache-2.0
"""The tiles of depthwise_conv2d as machine code: instructions per output, registers, accesses of its loop."""

import re

FORWARD = "depthwise_conv2d_forward_kernel"
PLAIN = 1  # DepthwiseEpilogue
STRIP = {(3, 1): 4, (3, 2): 2, (5, 1): 2, (5, 2): 2, (7, 1): 1, (7, 2): 1}  # DepthwiseTile::kStrip
LANES = {"float": 4, "half": 8, "bfloat16": 8}
# Of the loop over rows, 9, 25 and 49 of them sums. ptxas 13.0 takes 21 and 29 for 3x3 from sm_80 on, 24 and 32 before.
INSTRUCTIONS = {(3, 1): 26, (3, 2): 35, (5, 1): 42, (5, 2): 50, (7, 1): 84, (7, 2): 100}


def tiles(kernels, arch):
    """{(kernel size, stride, epilogue, dtype): kernel}; epilogue: 0 general, 1 plain, 3 with sums over tiles."""
    found = {(*k.parameters, k.dtype): k for k in kernels("depthwise_conv2d", arch) if k.name == FORWARD}
    assert sorted({key[:2] for key in found}) == sorted(STRIP) and len(found) == 3 * len(STRIP) * len(LANES)
    return found


def per_output(kernel) -> float:
    size, stride = kernel.parameters[:2]
    return len(kernel.loop()) / (STRIP[size, stride] * LANES[kernel.dtype])


def test_instructions_per_output(kernels, arch):
    found = {key[:2]: per_output(k) for key, k in tiles(kernels, arch).items() if key[2:] == (PLAIN, "half")}
    assert {key: figure for key, figure in found.items() if figure > INSTRUCTIONS[key]} == {}


def test_the_loop_is_the_one_over_rows(kernels, arch):
    """Each tap of each output is one FMA, and a row of y is stored once."""
    for (size, stride, epilogue, dtype), kernel in tiles(kernels, arch).items():
        if epilogue != PLAIN:
            continue
        loop, outputs = kernel.loop(), STRIP[size, stride] * LANES[dtype]
        sums = sum(2 if "FFMA2" in text else 1 for text in loop if "FFMA" in text)
        assert sums >= size * size * outputs, kernel.label
        stores = [text for text in loop if re.search(r"\bSTG\b", text)]
        assert len(stores) == STRIP[size, stride] and all(".128" in text for text in stores), kernel.label
        loads = [text for text in loop if re.search(r"\bLDG\b", text)]
        columns = (STRIP[size, stride] - 1) * stride + size
        assert len(loads) == stride * columns and all(".128" in text for text in loads), kernel.label


def test_registers(kernels, arch):
    for (size, _, epilogue, dtype), kernel in tiles(kernels, arch).items():
        ceiling = 255 if epilogue != PLAIN or size == 5 else 128 if size == 3 else 168 if arch < 100 else 255
        if (arch, size, dtype) == (75, 3, "bfloat16"):
            ceiling = 168  # rounding to bfloat16 is integer work before sm_80
        assert kernel.registers <= ceiling, (kernel.label, kernel.registers)


def test_shared_memory(kernels, arch):
    """Weights and shifts as float, and the KiB that the system takes: four blocks fit in 64 KiB."""
    chunk = {3: 32, 5: 16, 7: 8}
    for (size, _, _, dtype), kernel in tiles(kernels, arch).items():
        needed = 4 * (size * size + 1) * LANES[dtype] * chunk[size]
        assert needed <= kernel.shared <= needed + 1024
        assert 4 * kernel.shared <= 64 * 1024


def gradient_tiles(kernels, arch, name="depthwise_conv2d_backward_tile_kernel"):
    """{(kernel size, stride, dtype): kernel}"""
    of = [k for k in kernels("depthwise_conv2d_backward", arch) if k.name == name]
    found = {(*k.parameters[:2], k.dtype): k for k in of}
    assert sorted({key[:2] for key in found}) == sorted(STRIP) and len(found) == len(of) == len(STRIP) * len(LANES)
    return found


def test_registers_of_the_gradients(kernels, arch):
    for (size, _, _), kernel in gradient_tiles(kernels, arch).items():
        assert kernel.registers <= (128 if size == 3 else 168), (kernel.label, kernel.registers)
    for kernel in gradient_tiles(kernels, arch, FORWARD).values():  # with the epilogue that computes z again
        assert kernel.parameters[2] == 2 and kernel.registers <= 255, (kernel.label, kernel.registers)


def test_shared_memory_of_the_gradients(kernels, arch):
    """The tiles of x and of its outputs, a pixel of 4 vectors every 80 bytes, and the filter as float."""
    for (size, stride, dtype), kernel in gradient_tiles(kernels, arch).items():
        more = (size + stride - 1) // stride - 1
        pixels = 8 * stride * 16 + (8 + more) * (16 // stride + more)
        needed = 80 * pixels + 4 * (size * size + 1) * LANES[dtype] * 4
        assert needed <= kernel.shared <= needed + 1024 <= 48 * 1024


def test_sums_of_the_gradients(kernels, arch):
    """Each tap is one FMA for either gradient, once a pixel: the loops hold no other arithmetic on floats."""
    for (size, stride, dtype), kernel in gradient_tiles(kernels, arch).items():
        found = sum(2 if "FFMA2" in text else 1 for _, text in kernel.code if "FFMA" in text)
        rows = size if size == 3 else 1  # of the filter, unrolled; at stride 2 a pixel meets half of them
        reach = (rows + stride - 1) // stride
        cells = 4 // stride
        needed = cells * size * (LANES[dtype] * reach + 4)
        assert needed <= found <= needed * 1.1, (kernel.label, found, needed)
