# SPDX-License-Identifier: Apache-2.0
"""``create_model(..., features_only=True)``: the last map of each stride, for detection and segmentation."""

import functools
import math
import threading
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

REDUCTIONS = (2, 4, 8, 16, 32)
INPUT = ".input"


class FeatureInfo(list):
    """A dict ``num_chs``, ``reduction``, ``module`` for each map, and timm's methods to read them by column."""

    def channels(self) -> list[int]:
        return [entry["num_chs"] for entry in self]

    def reduction(self) -> list[int]:
        return [entry["reduction"] for entry in self]

    def module_name(self) -> list[str]:
        """Where each map is taken: the module's output, or what goes into it for ``"name.input"``."""
        return [entry["module"] for entry in self]


class _Done(Exception):
    """The last map that is wanted is there."""


class _Taps:
    """Where the hooks of one net leave the maps; a place per thread, so that threads may share the net."""

    def __init__(self, wanted: set[int], last: int) -> None:
        self.wanted, self.last = wanted, last
        self.found: dict[int, dict[int, Tensor]] = {}

    def place(self) -> int:
        return 0 if torch.compiler.is_compiling() else threading.get_ident()

    def keep(self, index: int, x: Tensor) -> None:
        if index in self.wanted:
            self.found[self.place()][index] = x
        if index == self.last and not torch.compiler.is_exporting():  # which follows calls to their end, then prunes
            raise _Done


def _keep_output(taps: _Taps, index: int, module: nn.Module, args: tuple, output: Tensor) -> None:
    taps.keep(index, output)


def _keep_input(taps: _Taps, index: int, module: nn.Module, args: tuple) -> None:
    taps.keep(index, args[0])


class FeatureNet(nn.Module):
    """``net`` up to the last map asked for: a list of ``[N, C, H / reduction, W / reduction]``, finest first.

    What only the rest of ``net`` uses is removed. ``feature_info`` describes the maps.
    """

    def __init__(self, net: nn.Module, input_size: Sequence[int], name: str, out_indices: Iterable[int] | None) -> None:
        super().__init__()
        found = find_maps(net, input_size)
        if not found:
            raise ValueError(f"{name}: features_only needs maps of stride 2 or more, and this net has none")
        indices = list(range(len(found))) if out_indices is None else list(out_indices)
        if not indices or not all(isinstance(i, int) and -len(found) <= i < len(found) for i in indices):
            strides = ", ".join(f"{i}: stride {entry['reduction']}" for i, entry in enumerate(found))
            raise ValueError(f"{name}: out_indices must be some of {strides}; got {out_indices!r}")
        self.out_indices = [i % len(found) for i in indices]
        self.feature_info = FeatureInfo(found[i] for i in self.out_indices)
        self.net = net
        self._taps = _Taps(set(self.out_indices), max(self.out_indices))
        for i in self._taps.wanted:
            name = found[i]["module"]
            module = net.get_submodule(name.removesuffix(INPUT))
            if name.endswith(INPUT):
                module.register_forward_pre_hook(functools.partial(_keep_input, self._taps, i))
            else:
                module.register_forward_hook(functools.partial(_keep_output, self._taps, i))
        _remove_unused(self, input_size)

    def forward(self, x: Tensor) -> list[Tensor]:
        taps = self._taps
        place = taps.place()
        taps.found[place] = {}
        try:
            self.net(x)
        except _Done:
            pass
        found = taps.found.pop(place)
        return [found[i] for i in self.out_indices]


class _Event(NamedTuple):
    time: int
    module: str
    storage: int
    channels: int
    height: int


class _Recorder(TorchDispatchMode):
    """When each tensor that depends on the input is made and last read; the maps that go into and out of modules."""

    def __init__(self, net: nn.Module, x: Tensor) -> None:
        super().__init__()
        self.names = {module: name for name, module in net.named_modules() if name}
        self.time, self.alive = 0, [x]  # a storage that is freed would lend its key to another
        self.born, self.read = {_storage(x): 0}, {}
        self.events: list[_Event] = []
        self.heights: dict[str, list[int]] = {}  # of a module: input, output for each call

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = func(*args, **(kwargs or {}))
        self.time += 1
        read = [s for s in map(_storage, _tensors((args, kwargs))) if s in self.born]
        self.read.update(dict.fromkeys(read, self.time))
        for tensor in _tensors(result) if read else ():
            self.alive.append(tensor)
            self.born.setdefault(_storage(tensor), self.time)
        return result

    def note(self, module: nn.Module, values: Any, suffix: str) -> None:
        name, maps = self.names.get(module), [t for t in _tensors(values) if t.dim() == 4]
        if name is None:
            return
        self.heights.setdefault(name, []).append(maps[0].shape[2] if maps else 0)
        if len(maps) == 1:
            self.events.append(_Event(self.time, name + suffix, _storage(maps[0]), *maps[0].shape[1:3]))

    def trunk(self) -> list[_Event]:
        """The maps that all that follows depends on; NASNet's cells read the one before, too."""
        found: list[_Event] = []
        for event in filter(self._of_a_stage, self.events):
            earlier = {before.storage for before in found}
            beside = {s for s, born in self.born.items() if born <= event.time < self.read.get(s, 0)} - {event.storage}
            if not beside or len(beside) == 1 and beside <= earlier:
                found.append(event)
        return found

    def _of_a_stage(self, event: _Event) -> bool:
        """Not inside a block, and not of a module called twice. What reduces by 3 or more is a row of stages."""
        parts = event.module.removesuffix(INPUT).split(".")
        around = (self.heights.get(".".join(parts[:i])) for i in range(1, len(parts)))
        if any(calls and calls[0] < 3 * calls[1] for calls in around):
            return False
        return len(self.heights[event.module.removesuffix(INPUT)]) == 2


def _tensors(values: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(values) if isinstance(leaf, Tensor)]


def _storage(x: Tensor) -> int:
    return x.untyped_storage()._cdata


def _on_meta(net: nn.Module, x: Tensor) -> tuple[dict[str, Tensor], Any]:
    """What ``net`` returns for ``x`` in eval mode with parameters that have shapes only; these parameters."""
    meta = {name: torch.empty_like(p, device="meta").requires_grad_() for name, p in net.named_parameters()}
    buffers = {name: torch.empty_like(b, device="meta") for name, b in net.named_buffers()}
    modes = {module: module.training for module in net.modules()}
    net.eval()
    try:
        return meta, torch.func.functional_call(net, meta | buffers, (x,))
    finally:
        for module, mode in modes.items():
            module.training = mode


def find_maps(net: nn.Module, input_size: Sequence[int]) -> list[dict[str, Any]]:
    """The last map of each stride on the way from the input to the classifier; nothing is computed."""
    x = torch.empty(1, *input_size, device="meta")
    recorder = _Recorder(net, x)
    hooks = [  # those of all modules: one on a convolution would keep it from being fused
        register_module_forward_pre_hook(lambda module, args: recorder.note(module, args, INPUT)),
        register_module_forward_hook(lambda module, args, output: recorder.note(module, output, "")),
    ]
    try:
        with torch.no_grad(), recorder:
            _on_meta(net, x)
    finally:
        for hook in hooks:
            hook.remove()
    trunk: list[_Event] = []
    resized: set[int] = set()  # maps of a size that the next layer wants, not of their stride
    for event in recorder.trunk():
        if event.height == 1 and (trunk[-1].height if trunk else input_size[1]) > 2:
            break  # a global pool
        module = net.get_submodule(event.module.removesuffix(INPUT))
        if isinstance(module, (nn.AdaptiveAvgPool2d, nn.ConstantPad2d)) and not event.module.endswith(INPUT):
            resized.add(event.storage)
        if event.storage not in resized and not (trunk and trunk[-1].storage == event.storage):
            trunk.append(event)
    trunk = _without_head(net, trunk)
    last = {round(math.log2(input_size[1] / event.height)): event for event in trunk}
    return [
        {"num_chs": last[i].channels, "reduction": 2**i, "module": last[i].module}
        for i in map(int.bit_length, (r - 1 for r in REDUCTIONS))
        if i in last
    ]


def _without_head(net: nn.Module, trunk: list[_Event]) -> list[_Event]:
    """A last 1x1 convolution belongs to the classifier where that is no more than one linear layer, as timm has it."""
    linear = sum(isinstance(module, nn.Linear) for module in net.modules())
    for i in range(len(trunk) - 1, 0, -1):
        if linear > 1 or trunk[i].module.endswith(INPUT) or trunk[i].height != trunk[i - 1].height:
            break
        convs = [m for m in net.get_submodule(trunk[i].module).modules() if isinstance(m, nn.Conv2d)]
        if convs:  # else its norm or activation
            return trunk[:i] if len(convs) == 1 and convs[0].kernel_size == (1, 1) else trunk
    return trunk


def _remove_unused(features: FeatureNet, input_size: Sequence[int]) -> None:
    """Put an identity in the place of every module whose parameters no map depends on."""
    x = torch.empty(1, *input_size, device="meta")
    with torch.enable_grad():
        parameters, maps = _on_meta(features, x)
        total = torch.stack([x.sum() for x in maps]).sum()
        gradients = torch.autograd.grad(total, list(parameters.values()), allow_unused=True)
    used = [name for name, gradient in zip(parameters, gradients, strict=True) if gradient is not None]
    removed = {}
    for name, module in list(features.named_modules()):
        unused = next(module.parameters(), None) is not None and not any(key.startswith(f"{name}.") for key in used)
        if name and unused:
            removed[name] = module
            features.set_submodule(name, nn.Identity())
    last, features._taps.last = features._taps.last, -1
    try:
        _on_meta(features, x)  # to its end, as torch.export will
    except Exception:
        for name, module in removed.items():
            features.set_submodule(name, module)
    features._taps.last = last
