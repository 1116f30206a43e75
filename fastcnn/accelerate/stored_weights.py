# SPDX-License-Identifier: Apache-2.0
"""The weights of a program as entries of its document and safetensors, and back as parameters under their names."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, fx, nn

from .document import DTYPES, is_path, short
from .targets import Refused

_KINDS = ("parameter", "buffer", "constant")
_MEMORY_FORMATS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}


def pack(program: fx.GraphModule) -> tuple[list[dict[str, Any]], dict[str, Tensor]]:
    """The entries of all weights in the order of the modules, and the tensors, each once."""
    listed, tensors, known = [], {}, {}
    for name, kind, tensor in _weights(program):
        if not is_path(name) or tensor.is_meta or type(tensor) not in (Tensor, nn.Parameter):
            raise Refused(
                f"weight {name!r} must be a tensor of values under a plain dotted name, got {type(tensor).__name__} on {tensor.device}"
            )
        if tensor.layout != torch.strided or tensor.dtype not in DTYPES.values():
            raise Refused(f"weight {name!r} must be dense, of {', '.join(DTYPES)}; got {tensor.layout}, {tensor.dtype}")
        entry = {"name": name, "kind": kind}
        key = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        if tensor.numel() and key in known:
            listed.append(entry | {"same_as": known[key]})
            continue
        known[key] = name
        listed.append(entry | {"memory_format": _memory_format(tensor)})
        tensors[name] = tensor.detach().cpu().clone(memory_format=torch.contiguous_format)
    _check_finite(tensors)
    return listed, tensors


def _weights(program: fx.GraphModule) -> Iterator[tuple[str, str, Tensor]]:
    found = set()
    for prefix, module in program.named_modules(remove_duplicate=False):
        for leaf, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            kind = "parameter" if leaf in module._parameters else "buffer"
            name = f"{prefix}.{leaf}" if prefix else leaf
            found.add(name)
            yield name, "constant" if leaf in module._non_persistent_buffers_set else kind, tensor
    for node in program.graph.nodes:
        if node.op == "get_attr" and node.target not in found:
            value: Any = program
            for part in node.target.split("."):
                value = getattr(value, part, None)
            if not isinstance(value, Tensor):
                raise Refused(f"node {node.name!r}: {node.target!r} must be a tensor, got {type(value).__name__}")
            found.add(node.target)
            yield node.target, "constant", value


def _memory_format(tensor: Tensor) -> str:
    if tensor.dim() != 4 or tensor.stride() == torch.empty(tensor.shape, device="meta").stride():
        return "contiguous"
    like = torch.empty(tensor.shape, device="meta", memory_format=torch.channels_last)
    return "channels_last" if tensor.stride() == like.stride() else "contiguous"


def _check_finite(tensors: dict[str, Tensor]) -> None:
    broken = [name for name, t in tensors.items() if t.is_floating_point() and not torch.isfinite(t).all()]
    if broken:
        raise Refused(f"NaN or infinity in {len(broken)} weights: {', '.join(broken[:20])}")


def _safetensors() -> Any:
    try:
        import safetensors
        import safetensors.torch
    except ModuleNotFoundError:
        raise Refused("its weights need safetensors: pip install safetensors") from None
    return safetensors


def to_bytes(tensors: dict[str, Tensor]) -> bytes:
    return _safetensors().torch.save(tensors)


def from_bytes(data: bytes) -> dict[str, Tensor]:
    library = _safetensors()
    try:
        # KeyError: an element type that torch or this safetensors does not have.
        tensors = library.torch.load(data)
    except (library.SafetensorError, KeyError, ValueError, RuntimeError, OverflowError) as error:
        raise Refused(f"the weights are not a safetensors file, or damaged: {str(error)[:200]}") from None
    for name, tensor in tensors.items():
        if tensor.dtype not in DTYPES.values():
            raise Refused(f"the weights: {short(name)} must be of {', '.join(DTYPES)}, got {tensor.dtype}")
        # Kernels count on a bool being 0 or 1, here it is whatever byte the file has.
        if tensor.dtype == torch.bool and tensor.numel() and tensor.view(torch.uint8).max() > 1:
            raise Refused(f"the weights: {short(name)} has bool values other than 0 and 1")
    _check_finite(tensors)
    return tensors


def unpack(program: fx.GraphModule, listed: Any, tensors: dict[str, Tensor]) -> set[str]:
    """Register what ``listed`` names, in its order, and take it out of ``tensors``; its names.

    Raises: Refused, naming the entry.
    """
    if not isinstance(listed, list):
        raise Refused(f"weights must be a list, got {short(listed)}")
    made: dict[str, Tensor] = {}
    shared = set()
    for i, entry in enumerate(listed):
        place = f"weight {i} ({short(entry.get('name') if isinstance(entry, dict) else entry)})"
        if not isinstance(entry, dict) or entry.keys() - {"memory_format", "same_as"} != {"name", "kind"}:
            raise Refused(f"{place} must be an object with name, kind and memory_format or same_as, got {short(entry)}")
        name, kind, other = entry["name"], entry["kind"], entry.get("same_as")
        if not is_path(name) or name in made or kind not in _KINDS:
            raise Refused(f"{place} must have a plain dotted name of its own and a kind of {_KINDS}, got {short(kind)}")
        if other is None:
            tensor = _own_memory(place, tensors.pop(name, None), entry.get("memory_format"))
        elif isinstance(other, str) and other in made and other not in shared and "memory_format" not in entry:
            tensor = made[other]
            shared.add(name)
        else:
            raise Refused(f"{place} must be the same as an earlier weight that is stored, got {short(other)}")
        if kind == "parameter" and not isinstance(tensor, nn.Parameter):
            tensor = nn.Parameter(tensor, requires_grad=False)
        made[name] = tensor
        _register(program, place, name, kind, tensor)
    strange = sorted(tensors)
    if strange:
        raise Refused(f"{len(strange)} stored weights are not listed: {short(strange)}")
    return set(made)


def _own_memory(place: str, stored: Tensor | None, memory_format: Any) -> Tensor:
    if stored is None:
        raise Refused(f"{place} is not among the stored weights")
    if not isinstance(memory_format, str) or memory_format not in _MEMORY_FORMATS:
        raise Refused(f"{place} must have a memory_format of {', '.join(_MEMORY_FORMATS)}, got {short(memory_format)}")
    if memory_format == "channels_last" and stored.dim() != 4:
        raise Refused(f"{place} is channels_last and must have 4 dimensions, got {stored.dim()}")
    # The library's tensors stand wherever they stood in the file, ours at addresses that suit vector loads.
    return torch.empty(stored.shape, dtype=stored.dtype, memory_format=_MEMORY_FORMATS[memory_format]).copy_(stored)


def _register(program: fx.GraphModule, place: str, name: str, kind: str, tensor: Tensor) -> None:
    *path, leaf = name.split(".")
    owner: nn.Module = program
    try:
        for part in path:
            if part not in owner._modules:
                owner.add_module(part, nn.Module())
            owner = owner._modules[part]
        if kind == "parameter":
            owner.register_parameter(leaf, tensor)
        else:
            owner.register_buffer(leaf, tensor, persistent=kind == "buffer")
    except KeyError:  # of what nn.Module has already: a method, a module where a weight is to stand
        raise Refused(f"{place} has a name that stands for something else in a module") from None
