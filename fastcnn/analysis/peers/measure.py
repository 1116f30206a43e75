# SPDX-License-Identifier: Apache-2.0
"""One model on every engine: held against fp64, then timed in turn."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.analysis.peers.engines import ENGINES, FASTCNN, Call, Case, Engine, missing
from fastcnn.analysis.peers.peak import fma_peak
from fastcnn.benchmark import Comparison, interleave
from fastcnn.reference import WrongOutput, assert_matches, calibrate, reference_model, relative_error

CHECKED = 2  # pictures of a batch that are held against fp64, which is slow
DTYPES = (torch.float32, torch.bfloat16)


@dataclass
class Row:
    """A model and batch on every engine; milliseconds and GFLOP/s are of the whole batch, by engine.

    ``notes`` says of each engine without a time why it has none. ``macs`` are those of the definition, of one image.
    """

    model: str
    batch: int
    size: list[int]
    dtype: str
    threads: int
    macs: int
    milliseconds: dict[str, float] = field(default_factory=dict)
    quartiles: dict[str, tuple[float, float]] = field(default_factory=dict)
    minimum: dict[str, float] = field(default_factory=dict)
    errors: dict[str, float] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    peak_gflops: float = 0.0
    peak_how: str = ""
    rounds: int = 0
    noisy: bool = False
    kind: str = "speed"

    @property
    def fastest_peer(self) -> str | None:
        peers = {label: time for label, time in self.milliseconds.items() if label != FASTCNN}
        return min(peers, key=peers.__getitem__, default=None)

    def ratio(self, peer: str | None = None) -> float | None:
        """The time of ``peer``, by default the fastest, over ours: above 1 we are faster. None where one has none."""
        times = self.milliseconds
        peer = peer or self.fastest_peer
        return times[peer] / times[FASTCNN] if peer in times and FASTCNN in times else None

    def gflops(self, label: str) -> float:
        """Two operations for each multiply-add of the definition, whatever the engine really computes."""
        return 2e-6 * self.macs * self.batch / self.milliseconds[label]

    def percent_of_peak(self, label: str) -> float:
        return 100 * self.gflops(label) / self.peak_gflops

    def to_dict(self) -> dict[str, Any]:
        found = asdict(self) | {"fastest_peer": self.fastest_peer, "ratio": self.ratio()}
        found["gflops"] = {label: self.gflops(label) for label in self.milliseconds}
        if self.dtype == "float32":
            found["percent_of_peak"] = {label: self.percent_of_peak(label) for label in self.milliseconds}
        return found

    @classmethod
    def from_dict(cls, found: Mapping[str, Any]) -> Row:
        return cls(**{name: found[name] for name in cls.__dataclass_fields__})


def original(name: str) -> tuple[nn.Module, list[int]]:
    """The model that a peer would be given, and [C, H, W] of its input.

    For a name of ours it is the reference package's model: ours consists of fused ops, which no other engine would get.
    Random weights; batch norm has statistics of data, moved afterwards. Raises: as ``fastcnn.cli.models.find_model``.
    """
    from fastcnn.cli.models import find_model
    from fastcnn.models import metadata

    try:
        facts = metadata(name)
    except (KeyError, ValueError):
        facts = {}
    reference = facts.get("reference", "plain:")
    if reference.startswith("plain:"):
        found = find_model(name)
        return found.model, found.input_size
    model = reference_model(reference, **facts.get("reference_kwargs", {}))
    return calibrate(model, facts["input_size"]), facts["input_size"]


def pixels(batch: int, size: Sequence[int]) -> Tensor:
    return torch.randn(batch, *size, generator=torch.Generator().manual_seed(1))


def multiply_adds(model: nn.Module, x: Tensor) -> int:
    """Of one image."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model(x[:1])
    return counter.get_total_flops() // 2


class Judge:
    """The parity rule: an engine that breaks it is a failure, whatever its speed."""

    def __init__(self, case: Case) -> None:
        few = case.x[:CHECKED]  # each picture of a batch is computed alone
        self.name, self.dtype = type(case.model).__name__, case.dtype
        self.truth = copy.deepcopy(case.model).double()(few.double())
        self.whole = {}
        for layout in (torch.contiguous_format, torch.channels_last):
            model, x = case.cast(layout)
            self.whole[str(layout)] = model(x).float()
        self.spread = relative_error(*self.whole.values())

    def check(self, label: str, output: Any) -> float:
        """The relative error against fp64. Raises: WrongOutput."""
        y = torch.as_tensor(output).float()
        own = {layout: each[:CHECKED] for layout, each in self.whole.items()}
        name = f"{self.name}, {label}"
        error = assert_matches(name, y[:CHECKED], own, self.truth, dtype=self.dtype)
        rest = relative_error(y, self.whole[str(torch.contiguous_format)])
        allowed = max(1e-5 if self.dtype == torch.float32 else torch.finfo(self.dtype).eps,
                      10 * max(self.spread, error))  # fmt: skip
        if not rest <= allowed:
            raise WrongOutput(
                f"{name}: in a batch of {len(y)} the output differs from the reference by {rest:.1e} (allowed: "
                f"{allowed:.1e}); it is not timed"
            )
        return error


def ready(case: Case, engines: Mapping[str, Engine], notes: dict[str, str]) -> tuple[dict[str, Call], dict[str, float]]:
    """Calls and errors of the engines that are right on ``case``; why the others are out goes into ``notes``."""
    judge = Judge(case)
    torch.compiler.reset()  # a graph with frozen weights must not be found again for another model
    calls: dict[str, Call] = {}
    errors: dict[str, float] = {}
    for label, engine in engines.items():
        if not engine.serves(case):
            continue
        absent = missing({label: engine})
        if absent:
            notes[label] = f"needs {', '.join(absent)}"
            continue
        try:
            call = engine.make(case)
            errors[label] = judge.check(label, call())
            calls[label] = call
        except WrongOutput as wrong:
            notes[label] = str(wrong)
        except Exception as failure:  # noqa: BLE001  (an engine that cannot run a model is a finding, not the end)
            notes[label] = f"{type(failure).__name__}: {failure}".splitlines()[0][:200]
    return calls, errors


@torch.inference_mode()
def compare(
    name: str,
    model: nn.Module,
    x: Tensor,
    *,
    dtype: torch.dtype = torch.float32,
    rounds: int = 15,
    seconds: float = 120.0,
    engines: Mapping[str, Engine] | None = None,
) -> Row:
    """Time every engine on ``model``, in eval mode and float32, and ``x``, [N, C, H, W] in NCHW, with torch's threads.

    Args:
        dtype: that the engines compute in, float32 or bfloat16; those that lack it are left out.
        rounds, seconds: as for :func:`fastcnn.benchmark.interleave`.
    Raises: ValueError for another ``dtype``.
    """
    if dtype not in DTYPES:
        raise ValueError(f"compare: dtype must be float32 or bfloat16, got {str(dtype).removeprefix('torch.')}")
    threads = torch.get_num_threads()
    row = Row(name, len(x), list(x.shape[1:]), str(dtype).removeprefix("torch."), threads, multiply_adds(model, x))
    fma_peak(threads)  # and again afterwards: the clock moves
    with tempfile.TemporaryDirectory() as folder:
        case = Case(model, x, Path(folder), threads, dtype)
        calls, row.errors = ready(case, engines or ENGINES, row.notes)
        if calls:
            fill(row, interleave(calls, rounds, seconds))
    row.peak_gflops, row.peak_how = fma_peak(threads)
    return row


def fill(row: Row, comparison: Comparison) -> None:
    """The times of ``comparison`` into ``row``."""
    for label, timing in comparison.timings.items():
        low, high = timing.quartiles
        row.milliseconds[label], row.quartiles[label] = timing.median * 1e3, (low * 1e3, high * 1e3)
        row.minimum[label] = min(timing.rounds) * 1e3
        row.rounds = len(timing.rounds)
    row.noisy = comparison.noisy
