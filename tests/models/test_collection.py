# SPDX-License-Identifier: Apache-2.0
"""Every net of the collection against its reference: keys, shapes, counts and multiply-adds; logits; a training step."""

from collections import Counter
from collections.abc import Collection, Iterable

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.models import canonical_name, create_model, list_models, metadata
from fastcnn.models.registry import _ENTRY_POINTS
from fastcnn.models.weights import to_own_layout
from tests.models.collection import COLLECTION, OF_EACH_FAMILY, REPRESENTATIVE, TOO_LARGE
from tests.parity import FORMATS, assert_eval_parity, assert_train_parity, build_pair, build_reference

# What ours has an op for; a global average pool is a mean there.
OURS = {
    f"aten.{op}"
    for op in (
        "convolution conv2d _native_batch_norm_legit_no_training native_batch_norm cudnn_batch_norm relu relu_ hardtanh "
        "hardtanh_ clamp_min hardswish hardswish_ hardsigmoid hardsigmoid_ silu silu_ sigmoid sigmoid_ mean "
        "max_pool2d max_pool2d_with_indices channel_shuffle native_channel_shuffle pixel_shuffle"
    ).split()
}
FEW_MACS = 6e9


def _short(names: dict, short: Collection[str] = REPRESENTATIVE) -> list:
    return [pytest.param(name, marks=() if name in short else pytest.mark.long) for name in names]


def _size(name: str) -> tuple[int, int]:
    """The native size, or a smaller one where that takes long."""
    facts = COLLECTION[name]
    native = facts["input_size"][1]
    if native <= 64 or (facts["macs"] or 0) <= FEW_MACS:
        return native, native
    return (160, 160) if native >= 299 else (112, 112)


class Recorded(TorchDispatchMode):
    """The operators that a forward calls; ours count as one each."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.names.add(str(func).rpartition(".")[0])
        return func(*args, **(kwargs or {}))


def _pair_without_values(name: str) -> tuple[nn.Module, nn.Module]:
    facts = COLLECTION[name]
    with torch.device("meta"):
        return create_model(name), build_reference(facts["reference"], **facts.get("reference_kwargs", {}))


def _norms(net: nn.Module) -> Counter:
    kinds = (nn.modules.batchnorm._BatchNorm, nn.GroupNorm)
    return Counter((m.eps, getattr(m, "momentum", None)) for m in net.modules() if isinstance(m, kinds))


@pytest.mark.parametrize("name", _short(COLLECTION))
def test_structure(name: str) -> None:
    facts = COLLECTION[name]
    ours, theirs = _pair_without_values(name)
    own, state = ours.state_dict(), theirs.state_dict()
    mapped = to_own_layout(state, own, metadata(name).get("also_loads", []))
    assert {key: value.shape for key, value in own.items()} == {key: value.shape for key, value in mapped.items()}
    assert _norms(ours) == _norms(theirs)
    parameters = sum(p.numel() for p in ours.parameters())
    counter = FlopCounterMode(display=False)
    with torch.no_grad(), counter:
        logits = ours.eval()(torch.empty(1, *facts["input_size"], device="meta"))
    assert logits.shape[1] == facts["num_classes"] or not facts["num_classes"]
    if facts["params"] is None:  # the statement in plain torch is all there is
        with torch.no_grad(), FlopCounterMode(display=False) as plain:
            theirs.eval()(torch.empty(1, *facts["input_size"], device="meta"))
        assert parameters == sum(p.numel() for p in theirs.parameters())
        assert counter.get_total_flops() == plain.get_total_flops()
    else:
        assert (parameters, len(own)) == (facts["params"], facts["state_dict_entries"])
        # the reference of NASNet-A mobile pads, and crops rows that it has computed; ours does not compute them
        assert counter.get_total_flops() == 2 * facts.get("macs_without_cropped_rows", facts["macs"])


@pytest.mark.parametrize("name", _short(COLLECTION))
def test_nothing_runs_on_torch_where_ours_exists(name: str) -> None:
    facts = COLLECTION[name]
    with torch.device("meta"):
        ours = create_model(name).eval()
    with torch.no_grad(), Recorded() as recorded:
        ours(torch.empty(1, *facts["input_size"], device="meta"))
    assert not recorded.names & OURS


def test_every_family_is_represented() -> None:
    def files(names: Iterable[str]) -> set[str]:
        return {_ENTRY_POINTS[canonical_name(name)].__module__.rpartition(".")[2] for name in names}

    assert files(list_models()) - TOO_LARGE.keys() == files(REPRESENTATIVE) >= set(TOO_LARGE.values())
    assert REPRESENTATIVE.keys() >= OF_EACH_FAMILY


@pytest.mark.parametrize("name", _short(REPRESENTATIVE, OF_EACH_FAMILY))
def test_logits(name: str) -> None:
    facts = COLLECTION[name]
    size = REPRESENTATIVE[name]
    ours, theirs = build_pair(name, facts["reference"], size, **facts.get("reference_kwargs", {}))
    for batch in (1, 3):
        assert_eval_parity(ours, theirs, torch.randn(batch, facts["input_size"][0], *size))


@pytest.mark.parametrize("memory_format", FORMATS)
@pytest.mark.parametrize("name", _short(REPRESENTATIVE, OF_EACH_FAMILY))
def test_training_step(name: str, memory_format: str) -> None:
    facts = COLLECTION[name]
    size = REPRESENTATIVE[name]
    ours, theirs = build_pair(name, facts["reference"], size, **facts.get("reference_kwargs", {}))
    assert_train_parity(ours, theirs, torch.randn(3, facts["input_size"][0], *size), FORMATS[memory_format])


@pytest.mark.long
@pytest.mark.parametrize("name", COLLECTION)
def test_logits_of_every_net(name: str) -> None:
    facts = COLLECTION[name]
    size = _size(name)
    ours, theirs = build_pair(name, facts["reference"], size, **facts.get("reference_kwargs", {}))
    assert_eval_parity(ours, theirs, torch.randn(1, facts["input_size"][0], *size))
