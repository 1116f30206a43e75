# SPDX-License-Identifier: Apache-2.0
"""Whether a net is what its reference package's net is: structure on the meta device, logits by the parity rule."""

import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.backends import use_backend
from fastcnn.models import WeightsError, canonical_name, create_model, metadata
from fastcnn.models.weights import to_own_layout
from fastcnn.reference import calibrate, reference_model, relative_error

FEW_MACS = 6e9  # above, logits are compared on a smaller input
FLOOR, FACTOR = 1e-5, 5.0
# A deep net of random weights amplifies rounding until fp32 says little. Then both sides are compared in fp64 too, where
# the same amplification leaves 2e-9 of the error, or 5 times the reference's difference between its memory formats.
AMPLIFIES, IN_FP64 = 1e-4, 1e-6
FORMATS = (torch.contiguous_format, torch.channels_last)


@dataclass
class Parity:
    """What :func:`check_model` found; ``problems`` is empty for a net that is its reference's equal.

    ``reference`` is "torch backend" where no package has the net: it is compared with itself on plain torch.
    ``error`` is that of the logits in fp32 against the reference in fp64, relative to the largest; ``error64`` that of
    ours in fp64, where the reference's own error in fp32 is large.
    """

    model: str
    reference: str
    parameters: int = 0
    state_dict_entries: int = 0
    macs: int = 0
    input_size: list[int] = field(default_factory=list)
    error: float | None = None
    allowed: float | None = None
    error64: float | None = None
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {"ok": not self.problems}


def check_model(name: str) -> Parity:
    """Hold the net ``name`` against the reference that its metadata names.

    Raises: MissingReference with the pip command when that package is not installed.
    """
    started = time.perf_counter()
    name = canonical_name(name)
    facts = metadata(name)
    reference = None if facts["reference"].startswith("plain:") else facts["reference"]
    found = Parity(name, reference or "torch backend")
    compare_structure(found, facts, reference)
    if not found.problems:
        compare_logits(found, facts, reference)
    found.seconds = time.perf_counter() - started
    return found


def compare_structure(found: Parity, facts: dict[str, Any], reference: str | None) -> None:
    """Parameters, state_dict, output shape and multiply-adds, of nets without data."""
    with torch.device("meta"):
        ours = create_model(found.model).eval()
        theirs = reference_model(reference, **facts.get("reference_kwargs", {})) if reference else ours
    own = ours.state_dict()
    found.parameters, found.state_dict_entries = _count(ours), len(own)
    shape, found.macs = _shape_and_macs(ours, facts["input_size"])
    if theirs is ours:
        return
    their_shape, their_macs = _shape_and_macs(theirs, facts["input_size"])
    for what, got, wanted in (
        ("parameters", found.parameters, _count(theirs)),
        ("output", shape, their_shape),
        ("MACs", facts.get("reference_macs", found.macs), their_macs),  # of one that computes more than it uses
    ):
        if got != wanted:
            found.problems.append(f"{what}: wanted {wanted}, got {got}")
    try:
        state = to_own_layout(theirs.state_dict(), own, facts.get("also_loads", []))
    except WeightsError as error:
        found.problems.append(f"state_dict: {error}")
        return
    wrong = [key for key in own.keys() | state.keys() if _shape(own, key) != _shape(state, key)]
    if wrong:
        key = min(wrong)
        found.problems.append(
            f"state_dict: {len(wrong)} of {len(own)} entries differ, the first is {key}: wanted {_shape(state, key)}, "
            f"got {_shape(own, key)}"
        )


def compare_logits(found: Parity, facts: dict[str, Any], reference: str | None) -> None:
    """Eval in fp32, contiguous and channels_last, on the same weights and statistics that hide nothing."""
    found.input_size = size_to_run(facts, found.macs)
    with torch.random.fork_rng(devices=[]), torch.no_grad(), _one_thread():
        torch.manual_seed(0)
        kwargs = facts.get("reference_kwargs", {})
        theirs = reference_model(reference, **kwargs) if reference else create_model(found.model)
        if reference and reference.startswith("pytorchcv:"):
            _any_size_and_layout(theirs, found.input_size != facts["input_size"])
        _fill(theirs)
        calibrate(theirs, found.input_size)
        ours = create_model(found.model, weights=theirs.state_dict()).eval()
        x = torch.randn(1, *found.input_size)
        our_logits = [_run(ours, x, memory_format) for memory_format in FORMATS]
        with nullcontext() if reference else use_backend("reference"):
            their_logits = [_run(theirs, x, memory_format) for memory_format in FORMATS]
            truth = theirs.double()(x.double())
            found.error = max(relative_error(y, truth) for y in our_logits)
            found.allowed = max(FLOOR, FACTOR * max(relative_error(y, truth) for y in their_logits))
            amplifies = found.allowed > AMPLIFIES
            others = [_run(theirs, x.double(), memory_format) for memory_format in FORMATS] if amplifies else []
        del theirs
        if amplifies:
            found.error64 = relative_error(ours.double()(x.double()), truth)
    if not found.error <= found.allowed:
        found.problems.append(f"logits: error {found.error:.1e}, allowed {found.allowed:.1e}")
    allowed64 = max(IN_FP64 * found.allowed, *(FACTOR * relative_error(other, truth) for other in others), 0.0)
    if found.error64 is not None and not found.error64 <= allowed64:
        found.problems.append(f"logits in fp64: error {found.error64:.1e}, allowed {allowed64:.1e}")


def size_to_run(facts: dict[str, Any], macs: int) -> list[int]:
    """The native input; above 6 G multiply-adds a smaller one, where the net takes others."""
    channels, native, width = facts["input_size"]
    if native <= 64 or macs <= FEW_MACS or "max_size" in facts:
        return [channels, native, width]
    size = max(160 if native >= 299 else 112, facts.get("min_size", 1))
    return [channels, size, size]


@torch.no_grad()
def _shape_and_macs(net: nn.Module, input_size: list[int]) -> tuple[list[int], int]:
    with FlopCounterMode(display=False) as counter:
        y = net(torch.empty(1, *input_size, device="meta"))
    return list(y.shape), counter.get_total_flops() // 2


def _run(net: nn.Module, x: Tensor, memory_format: torch.memory_format) -> Tensor:
    return net.to(memory_format=memory_format)(x.to(memory_format=memory_format))


def _fill(net: nn.Module) -> None:
    """Random values for what is all zeros or all ones at the start: branches and biases that would show nothing."""
    for parameter in net.parameters():
        if not parameter.any():
            fan_in = parameter[0].numel() if parameter.dim() > 1 else 100
            parameter.normal_(0.0, fan_in**-0.5)
        elif (parameter == 1.0).all():
            parameter.uniform_(0.8, 1.2)


def _any_size_and_layout(net: nn.Module, smaller: bool) -> None:
    """pytorchcv's last pool is 7x7, which is global at the native size; its heads flatten by view, of NCHW only."""
    features = getattr(net, "features", None)
    if smaller and isinstance(getattr(features, "final_pool", None), nn.AvgPool2d):
        features.final_pool = nn.AdaptiveAvgPool2d(1)
    if features is not None:
        features.register_forward_hook(lambda module, args, output: output.contiguous())


def _count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def _shape(state: dict[str, Tensor], key: str) -> list[int] | None:
    return list(state[key].shape) if key in state else None


@contextmanager
def _one_thread() -> Iterator[None]:
    """In fp64 torch runs a depthwise convolution as one tiny product a channel, each behind a barrier."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
