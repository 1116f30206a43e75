# SPDX-License-Identifier: Apache-2.0
"""NASNet-A and AmoebaNet-A: multiply-adds and parameters by hand, sizes that the references refuse, ReLUs made once."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import create_model
from tests.models.collection import COLLECTION
from tests.parity import assert_eval_parity, build_reference, randomise


def test_multiply_adds_are_the_references_without_the_row_and_column_it_crops() -> None:
    """pytorchcv pads the top and left by 1, runs both convolutions on n + 1 pixels a side, and drops the first."""
    facts = COLLECTION["nasnet_a_mobile"]
    with torch.device("meta"):
        theirs, x = build_reference(facts["reference"]).eval(), torch.empty(1, *facts["input_size"])
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        theirs(x)
    kernels = [5, 7, 7, 5, 3]
    reductions = {22: 28, 88: 14, 176: 7}  # channels: pixels of the output
    cropped = sum(((n + 1) ** 2 - n**2) * c * (k**2 + c) for c, n in reductions.items() for k in kernels)
    assert counter.get_total_flops() == 2 * facts["macs"]
    assert facts["macs_without_cropped_rows"] == facts["macs"] - cropped
    assert round(facts["macs_without_cropped_rows"] / 1e6) == 564  # the paper's table 3


def test_the_checkpoints_of_pretrainedmodels_give_their_logits() -> None:
    torch.manual_seed(0)
    theirs = build_reference("pretrainedmodels:nasnetamobile", num_classes=1000)
    theirs.avg_pool = nn.AdaptiveAvgPool2d(1)  # 7x7: equal at 224
    randomise(theirs, torch.randn(4, 3, 97, 97))
    ours = create_model("nasnetamobile", weights=theirs.state_dict()).eval()
    assert_eval_parity(ours, theirs, torch.randn(2, 3, 97, 97))


def separable(c: int, k: int) -> int:
    return 2 * (k * k * c + c * c + 2 * c)


def joined(x: int, prev: int, c: int) -> int:
    return (x + prev) * c + 4 * c


def amoebanet_parameters(n: int, f: int, classes: int) -> int:
    def normal(x: int, prev: int, c: int) -> int:
        return joined(x, prev, c) + 3 * separable(c, 3) + separable(c, 5)

    def reduction(x: int, prev: int, c: int) -> int:
        return joined(x, prev, c) + 2 * separable(c, 3) + 2 * separable(c, 7) + 2 * 7 * c * c + 2 * c

    total = 27 * 32 + 2 * 32 + reduction(32, 32, f // 4) + reduction(3 * (f // 4), 32, f // 2)
    x, prev = 3 * (f // 2), 3 * (f // 4)
    for stage in range(3):
        c = f << stage
        if stage > 0:
            total, x, prev = total + reduction(x, prev, c), 3 * c, x
        for _ in range(n):
            total, x, prev = total + normal(x, prev, c), 3 * c, x
    return total + x * classes + classes


@pytest.mark.parametrize(("n", "f", "classes"), [(4, 50, 1000), (2, 18, 7), (3, 190, 10)])
def test_amoebanet_parameters(n: int, f: int, classes: int) -> None:
    with torch.device("meta"):
        net = create_model("amoebanet_a", repeats=n, filters=f, num_classes=classes)
    assert sum(p.numel() for p in net.parameters()) == amoebanet_parameters(n, f, classes)


@pytest.mark.parametrize("name", ["nasnet_a_mobile", "nasnet_a_large", "amoebanet_a"])
@pytest.mark.parametrize("size", [(64, 91), (33, 50)])
def test_any_size_classes_and_channels(name: str, size: tuple[int, int]) -> None:
    net = create_model(name, repeats=2, filters=24, stem=8, num_classes=5, in_chans=1, dropout=0.2).eval()
    x = torch.randn(2, 1, *size)
    wanted = net(x)
    assert wanted.shape == (2, 5) and net(x[:0]).shape == (0, 5)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(x), wanted)


class ReLUs(TorchDispatchMode):
    """Counts our ReLUs that stand alone."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.count += str(func).startswith("fastcnn.activation")
        return func(*args, **(kwargs or {}))


def test_each_state_is_activated_once() -> None:
    """A normal cell: both inputs, read raw as well, and two sums without BN. A reduction cell: x, and the steps 0 and 1,
    read raw as well, and a sum of a pool and a step. The rest is done by the BN before it."""
    net = create_model("nasnet_a_mobile", repeats=2, filters=24, stem=8).eval()
    with torch.no_grad(), ReLUs() as relus:
        net(torch.randn(1, 3, 65, 65))
    assert relus.count == 6 * 4 + 4 * 4
