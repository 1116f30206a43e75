# SPDX-License-Identifier: Apache-2.0
"""The emulator itself: right kernels are right in every order, wrong ones are reported or give a wrong result."""

import pytest
import torch

from tests.emulator import build

BLOCKS = 5


@pytest.fixture
def examples(emulated, order):
    module = emulated("simt_examples")
    module.set_order(order, 1)
    return module


@pytest.fixture
def in_order(emulated):
    module = emulated("simt_examples")
    module.set_order(0, 0)
    return module


def block_sum(module, bug="none"):
    x, sums = torch.randint(-8, 8, (BLOCKS, 64)).float(), torch.full((BLOCKS,), float("nan"))
    module.block_sum(x.data_ptr(), sums.data_ptr(), BLOCKS, int(getattr(module.Bug, bug)))
    return torch.equal(sums, x.sum(1))


def reverse(module, bug="none", recorded=False):
    x, y = torch.randn(BLOCKS, 64), torch.full((BLOCKS, 64), float("nan"))
    if recorded:
        module.start_traffic([("x", x.data_ptr(), x.nbytes), ("y", y.data_ptr(), y.nbytes)])
    try:
        module.reverse(x.data_ptr(), y.data_ptr(), BLOCKS, int(getattr(module.Bug, bug)))
    finally:
        if recorded:
            module.stop_traffic(1 << 20, 4)
    return torch.equal(y, x.flip(1))


def test_barriers_shuffles_and_shared_memory(examples):
    assert block_sum(examples)
    assert reverse(examples)


def test_lanes(examples):
    y = torch.full((4, 32), float("nan"))
    examples.lanes(y.data_ptr())
    lane = torch.arange(32)
    assert torch.equal(y[0], torch.where(lane % 8 < 5, lane + 3, lane).float())
    assert torch.equal(y[1], torch.where(lane % 8 >= 3, lane - 3, lane).float())
    assert torch.equal(y[2], (lane // 16 * 16 + 5).float())
    assert torch.equal(y[3], (lane % 3 == 0).float())


@pytest.mark.parametrize(
    ("bug", "message"),
    [
        ("barrier_in_branch", "__syncthreads is not reached by 32 exited threads: thread 0 at .*simt_examples.cpp:"),
        ("two_barriers", "__syncthreads is reached at different places: thread 0 at .* and thread 32 at"),
        ("lane_gone", "the mask names lane 7, which has exited"),
        ("mask_too_small", "a shuffle reads lane 1[0-9], which its mask leaves out|a shuffle reads lane .* leaves out"),
        ("not_in_mask", "a lane waits with a mask that leaves it out: thread (3|35)"),
        ("shuffle_in_branch", "deadlock: not every lane of the mask arrives"),
    ],
)
def test_wrong_synchronisation_is_reported(examples, bug, message):
    with pytest.raises(RuntimeError, match=message):
        block_sum(examples, bug)
    assert block_sum(examples), "the emulator must be usable after an error"


@pytest.mark.parametrize("kernel", [block_sum, reverse])
def test_a_missing_barrier_gives_a_wrong_result_in_some_order(in_order, kernel):
    right = []
    for order in range(3):
        in_order.set_order(order, 3)
        right.append(kernel(in_order, "no_barrier"))
    assert right != [True] * 3


def test_static_shared_memory_is_poisoned_between_blocks(in_order):
    assert block_sum(in_order)  # leaves right-looking sums in the shared array
    x, sums = torch.ones(BLOCKS, 64), torch.zeros(BLOCKS)
    in_order.block_sum(x.data_ptr(), sums.data_ptr(), BLOCKS, int(in_order.Bug.unwritten_shared))
    assert sums.isnan().all()


@pytest.mark.skipif(build.SANITIZE, reason="the sanitizer ends the process there: test_sanitizers.py")
def test_dynamic_overrun_is_reported(in_order):
    with pytest.raises(RuntimeError, match="dynamic shared memory is written behind its bounds"):
        reverse(in_order, "dynamic_overrun")


@pytest.mark.skipif(build.SANITIZE, reason="UBSan ends the process there too")
def test_misaligned_vector_access_is_reported(in_order):
    x, y = torch.randn(80), torch.empty(64)
    in_order.copy_pairs(x.data_ptr(), y.data_ptr(), 0)
    assert torch.equal(x[:64], y)
    with pytest.raises(RuntimeError, match="an access of 8 bytes is misaligned at .*simt_examples.cpp:.* thread 0"):
        in_order.copy_pairs(x.data_ptr(), y.data_ptr(), 1)


def test_what_the_counters_refuse(in_order):
    assert reverse(in_order, recorded=True)
    with pytest.raises(RuntimeError, match="lanes of one warp reach different accesses"):
        reverse(in_order, "lanes_disagree", recorded=True)
    with pytest.raises(RuntimeError, match="an access outside every tensor at .*simt_examples.cpp"):
        reverse(in_order, "outside", recorded=True)


@pytest.mark.parametrize(
    ("arguments", "code"),
    [((0, 1, 32, 0), 9), ((1, 65536, 32, 0), 9), ((1, 1, 1025, 0), 9), ((1, 1, 32, 64 * 1024 + 1), 1)],
)
def test_launches_that_a_device_refuses(in_order, arguments, code):
    with pytest.raises(RuntimeError, match=f"refused with CUDA error {code}$"):
        in_order.launch_of(*arguments)
