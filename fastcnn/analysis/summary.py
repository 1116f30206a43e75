# SPDX-License-Identifier: Apache-2.0
"""Parameters, multiply-adds, activation memory and training memory of a net, layer by layer.

Activations are what a layer hands on in fp32: the input, and the output of every convolution, pool, linear layer and of
whatever else makes a new map (concatenation, addition, scaling, shuffle). Norms and activation functions count as done
in place, views and a pool that changes nothing take nothing. The ops are watched, not the modules: a fused convolution
is one layer, named after the module that owns its weight.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

MB, GB = 2**20, 2**30
FLOAT = 4
# optimizer: floats it keeps for each parameter
OPTIMIZERS = {"sgd": 0, "momentum": 1, "adam": 2}

CONVOLUTIONS = {"convolution", "conv_bn_act", "depthwise_conv2d"}
KINDS = {
    "addmm": "linear",
    "mm": "linear",
    "max_pool2d_with_indices": "max pool",
    "max_pool2d": "max pool",
    "avg_pool2d": "average pool",
    "_adaptive_avg_pool2d": "average pool",
    "mean": "average pool",
    "global_avg_pool": "average pool",
    "add": "add",
    "cat": "concat",
    "channel_shuffle": "shuffle",
    "channel_shuffle_concat": "shuffle",
    "se_scale": "squeeze-excite",
    "mul": "scale",
}
NORMS = {
    "native_batch_norm",
    "_native_batch_norm_legit",
    "_native_batch_norm_legit_no_training",
    "cudnn_batch_norm",
    "_batch_norm_no_update",
    "native_group_norm",
    "batch_norm_act",
}
ACTIVATIONS = set(
    "activation relu hardtanh clamp clamp_min hardswish hardsigmoid silu sigmoid tanh elu leaky_relu gelu mish softmax "
    "_softmax".split()
)


@dataclass
class Layer:
    """``activation_bytes`` are those of its output for one image in fp32."""

    name: str
    kind: str
    output_shape: list[int]
    parameters: int
    macs: int
    activation_bytes: int


@dataclass
class Summary:
    """The first of ``layers`` is the input. Sums are per image unless they name the batch."""

    model: str
    input_size: list[int]
    batch: int
    optimizer: str
    layers: list[Layer]

    @property
    def parameters(self) -> int:
        return sum(layer.parameters for layer in self.layers)

    @property
    def macs(self) -> int:
        return sum(layer.macs for layer in self.layers)

    @property
    def activation_bytes(self) -> int:
        return sum(layer.activation_bytes for layer in self.layers)

    @property
    def training_bytes(self) -> dict[str, int]:
        """Of a step in fp32 with the batch: every activation is kept for the backward, which makes its gradient."""
        weights = FLOAT * self.parameters
        return {
            "weights": weights,
            "gradients": weights,
            "optimizer state": OPTIMIZERS[self.optimizer] * weights,
            "activations, forward and backward": 2 * self.batch * self.activation_bytes,
        }

    def to_dict(self) -> dict[str, Any]:
        return asdict(self) | {
            "parameters": self.parameters,
            "parameter_bytes": FLOAT * self.parameters,
            "macs": self.macs,
            "activation_bytes": self.activation_bytes,
            "activation_bytes_of_batch": self.batch * self.activation_bytes,
            "training_bytes": self.training_bytes,
            "training_bytes_in_all": sum(self.training_bytes.values()),
        }


def summarize(
    net: nn.Module, input_size: Sequence[int], model: str = "", batch: int = 1, optimizer: str = "momentum"
) -> Summary:
    """Count ``net``, which is on the meta device, in eval mode for one image of ``input_size``."""
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"summarize: optimizer must be one of {', '.join(OPTIMIZERS)}, got {optimizer!r}")
    x = torch.empty(1, *input_size, device="meta")
    counter = FlopCounterMode(display=False)
    watch = _Watch(net.eval(), x, counter)
    hooks = [register_module_forward_pre_hook(watch.enter), register_module_forward_hook(watch.leave)]
    try:
        with torch.no_grad(), counter, watch:
            net(x)
    finally:
        for hook in hooks:
            hook.remove()
    rest = sum(p.numel() for p in net.parameters()) - sum(layer.parameters for layer in watch.layers)
    if rest:
        watch.layers.append(Layer("(not run in eval)", "", [], rest, 0, 0))
    return Summary(model or type(net).__name__, list(input_size), batch, optimizer, watch.layers)


class _Watch(TorchDispatchMode):
    """A layer for each op that the input goes through and that makes a map, has parameters or multiplies."""

    def __init__(self, net: nn.Module, x: Tensor, counter: FlopCounterMode) -> None:
        super().__init__()
        self.counter = counter
        self.modules = {module: name for name, module in net.named_modules()}
        self.inside: list[str] = []
        self.sizes = {name: p.numel() for name, p in net.named_parameters()}  # taken out by the layer that uses it
        self.owners = {_storage(p): [name] for name, p in net.named_parameters()}
        self.data = {_storage(x)}
        self.alive: list[Tensor] = []  # a storage that is freed would lend its key to another
        self.layers = [Layer("input", "input", list(x.shape[1:]), 0, 0, FLOAT * x.numel())]

    def enter(self, module: nn.Module, args: Any) -> None:
        self.inside.append(self.modules.get(module, ""))

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self.inside.pop()

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        kwargs = kwargs or {}
        before = self.counter.get_total_flops()
        result = func(*args, **kwargs)
        macs = (self.counter.get_total_flops() - before) // 2
        read = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        made = [t for t in tree_leaves(result) if isinstance(t, Tensor)]
        self.alive += made
        parameters = [name for t in read for name in self.owners.get(_storage(t), [])]
        if not self.data & set(map(_storage, read)):  # weights on their way to a layer: transposed, standardised
            self.owners.update((_storage(t), parameters) for t in made)
            return result
        self.data.update(map(_storage, made))
        names = [argument.name for argument in func._schema.arguments]
        arguments = dict(zip(names, args, strict=False)) | kwargs
        self.add(func._schema.name.split("::")[1], arguments, read, made, macs, parameters)
        return result

    def add(
        self, op: str, arguments: dict[str, Any], read: list[Tensor], made: list[Tensor], macs: int, used: list[str]
    ) -> None:
        old = set(map(_storage, read))
        new = [t for t in made if _storage(t) not in old and t.is_floating_point()]
        idle = op == "_adaptive_avg_pool2d" and made[0].shape == read[0].shape
        counted = new and not idle and op not in NORMS and op not in ACTIVATIONS and op.rstrip("_") == op
        floats = sum(t.numel() for t in new) if counted else 0
        parameters = sum(self.sizes.pop(name, 0) for name in used)
        if floats or parameters or macs:
            name = used[0].rpartition(".")[0] if used else self.inside[-1] if self.inside else ""
            kind = _convolution(arguments) if op in CONVOLUTIONS else "norm" if op in NORMS else KINDS.get(op, op)
            self.layers.append(Layer(name, kind, list(made[0].shape[1:]), parameters, macs, FLOAT * floats))


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _convolution(arguments: dict[str, Any]) -> str:
    weight = arguments["weight"]
    groups = arguments.get("groups", weight.shape[0])
    kind = "conv" if groups == 1 else "depthwise" if weight.shape[1] == 1 else f"conv, {groups} groups"
    stride = "" if set(arguments["stride"]) == {1} else f" / {arguments['stride'][0]}"
    return f"{kind} {weight.shape[2]}x{weight.shape[3]}{stride}"
