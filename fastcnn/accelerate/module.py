# SPDX-License-Identifier: Apache-2.0
"""The accelerated model: an ordinary module around a rewritten program."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec, tree_map_only, tree_unflatten

from .archive import ArchiveError
from .archive import load as read_archive
from .archive import save as write_archive
from .document import DTYPES
from .graph import CudaGraphs
from .packed import Packed
from .plan import can_bf16
from .profile import Profile, profile
from .program import aten, is_map, shape, value
from .report import Plans, Report, operators, plans


class InputRule(NamedTuple):
    """What an input must look like; None stands for an extent that may change."""

    name: str
    shape: tuple[int | None, ...]
    dtype: torch.dtype

    def check(self, x: Any) -> None:
        if not isinstance(x, Tensor):
            raise TypeError(f"accelerated model: {self.name} must be a Tensor, got {type(x).__name__}")
        fits = x.dim() == len(self.shape) and all(s is None or s == e for s, e in zip(self.shape, x.shape, strict=True))
        if not fits:
            raise ValueError(
                f"accelerated model: {self.name} must be {self.text()} as in the example, got {list(x.shape)}"
            )
        if x.is_floating_point() != self.dtype.is_floating_point or x.is_complex():
            raise TypeError(f"accelerated model: {self.name} must be {self.dtype}, as in the example, got {x.dtype}")

    def text(self) -> str:
        names = "NCHW" if len(self.shape) == 4 else "NCDEFGH"
        return "[" + ", ".join(names[i] if s is None else str(s) for i, s in enumerate(self.shape)) + "]"


class Accelerated(nn.Module):
    """What :func:`fastcnn.accelerate` returns: the same function as the original, for inference.

    An ordinary module: ``state_dict``, ``deepcopy``, ``.to``, ``torch.compile`` and threads work. Its weights are copies,
    with batch norm folded in: what happens to the original's later does not reach them. Inputs may have another floating
    dtype than the weights; the result has that of the input. No gradient passes where an op for inference stands
    (RuntimeError): who needs that of the input switches ``operand_gate`` and ``operand_norm`` off by ``mapping``.

    Attributes:
        program: the rewritten graph, of ``torch.ops.fastcnn`` and ATen operators.
        report: what was fused, what was not and why, errors, speed; on the CPU what its plans are now.
    """

    def __init__(self, program: fx.GraphModule, rules: list[InputRule], out_spec: TreeSpec, report: Report,
                 cuda_graph: bool = False, plan: bool = True) -> None:  # fmt: skip
        super().__init__()
        self.program = program
        self.graphs = CudaGraphs() if cuda_graph else None
        self.rules = rules
        self.out_spec = out_spec
        self._report = report
        self._plan = plan
        self._shapes = tuple(tuple(rule.shape) for rule in rules)
        self._sizes = any(extent is None for shape in self._shapes for extent in shape[1:])
        self._packed: Packed | None = None
        self._lock = threading.Lock()
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        cast, dtype = self._checked(inputs)
        given = next((x.dtype for x in inputs if x.is_floating_point()), dtype)
        inputs = cast
        if _is_plain(inputs):
            run = self.runs(inputs)
            with torch._C._AutoDispatchBelowAutograd():  # saves 4 to 8 us an operator
                outputs = self.graphs.call(run, inputs) if self.graphs else run.forward(*inputs)
        else:
            outputs = self.program(*inputs)
        if dtype != given:
            outputs = tree_map_only(Tensor, lambda y: y.to(given) if y.dtype == dtype else y, outputs)
        return tree_unflatten(list(outputs), self.out_spec)

    def runs(self, inputs: tuple[Tensor, ...]) -> fx.GraphModule:
        """What a call on ``inputs`` runs: the program, or on the CPU its form with packed weights, made here when needed."""
        if inputs[0].device.type != "cpu" or torch.is_autocast_enabled("cpu") or torch._C._len_torch_dispatch_stack():
            return self.program
        shapes = self._shapes
        if self._sizes:
            shapes = tuple((shape[0], *x.shape[1:]) for shape, x in zip(shapes, inputs, strict=True))
        return self._current().at(shapes).program

    def profile(self, *inputs: Tensor, calls: int = 20) -> Profile:
        """The time of every step of a plan and of every operator outside plans, medians of ``calls`` calls.

        Args:
            inputs: as the model takes them.
            calls: from 1 up, after one that is not counted.
        Returns: what ``print`` shows as a table; ``to_dict`` and ``plot`` give it otherwise.
        Raises: as a call does; ValueError for ``calls``.

        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 1)).eval()
        >>> found = fastcnn.accelerate(net, torch.randn(1, 3, 16, 16)).profile(torch.randn(2, 3, 16, 16), calls=2)
        >>> found.shapes, abs(sum(step.share for step in found.steps) - 1) < 1e-6
        ([[2, 3, 16, 16]], True)
        """
        inputs, _ = self._checked(inputs)
        return profile(self._report.model, self.runs(inputs), inputs, calls)

    def _checked(self, inputs: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], torch.dtype | None]:
        """The inputs in the dtype of the weights, and that."""
        if len(inputs) != len(self.rules):
            raise TypeError(f"accelerated model: takes {len(self.rules)} inputs, got {len(inputs)}")
        for rule, x in zip(self.rules, inputs, strict=True):
            rule.check(x)
        dtype = self.dtype()
        if dtype is None:
            return inputs, None
        return tuple(x.to(dtype) if x.is_floating_point() and x.dtype != dtype else x for x in inputs), dtype

    def _current(self) -> Packed:
        packed = self._packed
        if packed is None or not packed.current():
            with self._lock:
                packed = self._packed
                if packed is None or not packed.current():
                    dtypes = [self.dtype() or r.dtype if r.dtype.is_floating_point else r.dtype for r in self.rules]
                    packed = self._packed = Packed(self.program, dtypes, self._unplanned(), self._sizes)
        return packed

    def _unplanned(self) -> str | None:
        """Why there are to be no plans, or None."""
        if not self._plan:
            return 'switched off by mapping={"plan": False}'
        dtype = self.dtype()
        if dtype is None:
            return "it has no weights"
        name = str(dtype).removeprefix("torch.")
        if dtype == torch.bfloat16:
            return None if can_bf16() else "its weights are bfloat16, which this processor has no matrix unit for"
        return None if dtype == torch.float32 else f"its weights are {name}, plans compute in float32"

    @property
    def report(self) -> Report:
        """What :func:`fastcnn.accelerate` found, and on the CPU the plans of the image size that was called last."""
        device = next((weight.device for weight in self.program.parameters()), torch.device("cpu"))
        if device.type != "cpu":
            self._report.plans = Plans(reason=f"its weights are on {device}")
            return self._report
        packed = self._current()
        form = packed.latest()
        if form is None and not self._sizes:
            form = packed.at(self._shapes)
        if form is None:
            self._report.plans = Plans(
                reason="none yet: each image size has its own, made at the first call of that size"
            )
        else:
            self._report.plans = plans(form, packed.bytes())
            self._report.operators = operators(form)
        return self._report

    def _apply(self, fn: Callable, recurse: bool = True) -> Accelerated:
        self._packed = None
        return super()._apply(fn, recurse)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_packed": None, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._lock = threading.Lock()

    def dtype(self) -> torch.dtype | None:
        """Of the weights; None without floating weights."""
        return next((p.dtype for p in self.program.parameters() if p.is_floating_point()), None)

    def train(self, mode: bool = True) -> Accelerated:
        """Stays in eval mode: batch norm is folded.

        Raises: ValueError when asked to train.
        """
        if mode:
            raise ValueError("accelerated model: is for inference, its batch norms are folded: train the original")
        return super().train(False)

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write graph and weights to a file that :func:`fastcnn.load` reads without running code.

        Raises: ArchiveError (a ValueError) where the program holds an operator that no file may name; OSError.
        """
        rules = [[rule.name, list(rule.shape), str(rule.dtype).removeprefix("torch.")] for rule in self.rules]
        write_archive(
            path,
            self.program,
            in_spec=None,
            out_spec=self.out_spec,
            extra={"inputs": rules, "report": self._report.to_dict() | {"plans": None}, "plan": self._plan},
        )


def load(path: str | os.PathLike[str]) -> Accelerated:
    """What :meth:`Accelerated.save` wrote, on the CPU. Reads JSON and tensors; no code of the file runs.

    Raises: ArchiveError (a ValueError) for a file that is damaged, doctored or of another format; FileNotFoundError.
    """
    found = read_archive(path)
    try:
        rules = [InputRule(name, tuple(shape), DTYPES[dtype]) for name, shape, dtype in found.extra["inputs"]]
        report = Report.from_dict(found.extra["report"])
        plan = found.extra.get("plan", True)
        nodes = list(found.program.graph.nodes)
        inputs = sum(node.op == "placeholder" for node in nodes)
        fits = len(rules) == inputs and all(isinstance(rule.name, str) for rule in rules) and isinstance(plan, bool)
        fits = fits and found.out_spec is not None and found.out_spec.num_leaves == len(nodes[-1].args[0])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArchiveError(
            f"load: {os.fspath(path)!r} is refused: extra must hold inputs and report: {error}"
        ) from None
    if not fits:
        raise ArchiveError(f"load: {os.fspath(path)!r} is refused: inputs and out_spec must be those of the program")
    return Accelerated(found.program, rules, found.out_spec, report, plan=plan)


class Unchanged(nn.Module):
    """The original, where :func:`fastcnn.accelerate` had to leave it as it is; ``report.refused`` says why."""

    def __init__(self, model: nn.Module, report: Report) -> None:
        super().__init__()
        self.model = model
        self.report = report
        self.training = model.training

    def forward(self, *inputs: Any) -> Any:
        return self.model(*inputs)


def _is_plain(inputs: tuple[Tensor, ...]) -> bool:
    """Whether nobody traces, transforms or can ask for a gradient of this call."""
    if not all(type(x) in (Tensor, nn.Parameter) for x in inputs) or torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return False
    return not (torch.is_grad_enabled() and any(x.requires_grad for x in inputs))


def input_rules(program: fx.GraphModule) -> list[InputRule]:
    """Of the program's placeholders, from their fake tensors."""
    found = []
    for node in program.graph.nodes:
        if node.op == "placeholder":
            extents = tuple(extent if isinstance(extent, int) else None for extent in shape(node))
            found.append(InputRule(node.name, extents, value(node).dtype))
    return found


def use_channels_last(program: fx.GraphModule) -> None:
    """Maps inside are channels_last: converted where they come in, and back where they leave."""
    graph = program.graph
    nodes = list(graph.nodes)
    for node in nodes:
        if node.op == "placeholder" and is_map(node):
            with graph.inserting_after(nodes[max(i for i, each in enumerate(nodes) if each.op == "placeholder")]):
                inside = graph.call_function(aten.contiguous.default, (node,), {"memory_format": torch.channels_last})
            inside.meta = dict(node.meta)
            node.replace_all_uses_with(
                inside, delete_user_cb=lambda user, inside=inside: user is not inside and user.op != "output"
            )
    output = nodes[-1]
    for each in set(output.all_input_nodes):
        if is_map(each) and each.op == "call_function":
            with graph.inserting_before(output):
                outside = graph.call_function(aten.contiguous.default, (each,))
            outside.meta = dict(each.meta)
            output.replace_input_with(each, outside)
    for module in program.modules():
        for parameter in module._parameters.values():
            if parameter is not None and parameter.dim() == 4:
                parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)
    graph.lint()
    program.recompile()
