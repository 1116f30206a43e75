# SPDX-License-Identifier: Apache-2.0
"""Names to nets: ``@register`` on an entry point, ``list_models``, ``create_model``; metadata.json has the facts."""

import difflib
import fnmatch
import functools
import json
from collections.abc import Callable, Mapping, Sequence
from importlib import resources
from os import PathLike
from typing import Any

from torch import Tensor, nn

from fastcnn.models.inputs import name_itself

_ENTRY_POINTS: dict[str, Callable[..., nn.Module]] = {}
_ALIASES: dict[str, str] = {}


def register(name: str, *aliases: str) -> Callable[[Callable[..., nn.Module]], Callable[..., nn.Module]]:
    """Enter the decorated function under ``name``; ``aliases`` are other packages' names of the same net."""

    def enter(entry_point: Callable[..., nn.Module]) -> Callable[..., nn.Module]:
        for key in (name, *aliases):
            if key in _ENTRY_POINTS or key in _ALIASES:
                raise ValueError(f"register: the name {key!r} is taken")
        _ENTRY_POINTS[name] = entry_point
        _ALIASES.update(dict.fromkeys(aliases, name))
        return entry_point

    return enter


def list_models(pattern: str = "*") -> list[str]:
    """The registered names that match a shell pattern, sorted; other packages' names for the same nets are left out.

    >>> list_models("mobilenet_v3*")
    ['mobilenet_v3_large', 'mobilenet_v3_small']
    """
    return sorted(fnmatch.filter(_ENTRY_POINTS, pattern))


def canonical_name(name: str) -> str:
    """The registered name behind ``name``, which may be an alias. Raises: ValueError with the nearest names."""
    if not isinstance(name, str):
        raise TypeError(f"create_model: name must be a string, got {type(name).__name__}")
    found = _ALIASES.get(name, name)
    if found not in _ENTRY_POINTS:
        near = difflib.get_close_matches(name.lower(), [*_ENTRY_POINTS, *_ALIASES], n=5, cutoff=0.5)
        hint = f"nearest: {', '.join(near)}" if near else "fastcnn.list_models() names them all"
        raise ValueError(f"create_model: no model is called {name!r}; {hint}")
    return found


@functools.cache
def _all_metadata() -> dict[str, dict[str, Any]]:
    return json.loads(resources.files(__package__).joinpath("metadata.json").read_text(encoding="utf-8"))


def metadata(name: str) -> dict[str, Any]:
    """What metadata.json says of a model: reference, paper, input_size, mean, std, interpolation, crop_pct, top1..."""
    return dict(_all_metadata()[canonical_name(name)])


def create_model(
    name: str,
    weights: str | PathLike[str] | Mapping[str, Tensor] | None = None,
    num_classes: int | None = None,
    in_chans: int | None = None,
    features_only: bool = False,
    out_indices: Sequence[int] | None = None,
    **kwargs: Any,
) -> nn.Module:
    """Build a net by name, in training mode as torchvision and timm do.

    Args:
        name: one of :func:`list_models`, or torchvision's or timm's name for the same net.
        weights: None for a random net; "imagenet"; the path of a .pth, .pt or .safetensors file; or a state_dict. They
            must fit key by key, with one exception: "imagenet" with another ``num_classes`` than 1000 loads all but
            the last linear layer, which stays random.
        num_classes: outputs of the last linear layer; None for those of the paper's data, 1000 for ImageNet.
        in_chans: channels of the input; None for those of the paper's data.
        features_only: for detection and segmentation: the net returns a list of maps, the last of stride 2, 4, 8, 16
            and 32, as far as it has them; ``feature_info`` tells their channels, reductions and places.
        out_indices: which of these maps; None for all. Layers behind the last one are left out.
        kwargs: the net's own: ``dropout``, and ``width_mult`` where the paper has one.
    Raises: ValueError for a wrong name (with the nearest), a checkpoint that does not fit (with every such key), and
        weights that are not installed (with the command that installs them). The net itself raises it, with its name
        and what it takes, for an input of a wrong shape.

    >>> create_model("mobilenet_v2", num_classes=10)(torch.zeros(2, 3, 64, 64)).shape
    torch.Size([2, 10])
    >>> create_model("mobilenet_v2", features_only=True, out_indices=(2, 4)).feature_info.channels()
    [32, 320]
    """
    entry_point = _ENTRY_POINTS[canonical_name(name)]
    facts = metadata(name)
    num_classes = facts.get("num_classes", 1000) if num_classes is None else num_classes
    in_chans = facts["input_size"][0] if in_chans is None else in_chans
    least = min(1, facts.get("num_classes", 1))  # 0 for a lone block
    for argument, value, bound in (("num_classes", num_classes, least), ("in_chans", in_chans, 1)):
        if not isinstance(value, int) or value < bound:
            raise ValueError(f"create_model: {argument} must be an integer of at least {bound}, got {value!r}")
    model = entry_point(num_classes=num_classes, in_chans=in_chans, **kwargs)
    if weights is not None:
        from fastcnn.models.weights import load_weights

        load_weights(model, weights, name)
    sizes = {} if kwargs.keys() - {"dropout"} else facts  # those of the net as it is named
    name_itself(model, canonical_name(name), in_chans, sizes)
    if features_only:
        from fastcnn.models.features import FeatureNet

        return FeatureNet(model, [in_chans, *facts["input_size"][1:]], canonical_name(name), out_indices)
    if out_indices is not None:
        raise ValueError("create_model: out_indices is for features_only=True")
    return model
