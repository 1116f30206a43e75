# SPDX-License-Identifier: Apache-2.0
"""Models that a command line names: ours, torchvision's, timm's, or what a function of the person's own returns."""

import difflib
import importlib
import importlib.util
import inspect
import operator
import os
import sys
import traceback
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, TracebackType
from typing import Any, NamedTuple

from fastcnn.cli.console import CommandError, UsageError

PACKAGES = ("fastcnn", "torchvision", "timm")  # in the order in which they are asked for a name
INPUT_SIZE = [3, 224, 224]  # where nothing says more


class NamedModel(NamedTuple):
    """A model in eval mode, [C, H, W] of its input, and what a person should know of its origin."""

    model: Any
    input_size: list[int]
    notes: list[str]


def find_model(text: str, weights: str | None = None, size: Sequence[int] | None = None) -> NamedModel:
    """The model that ``text`` names, with random weights where ``weights``, a path, is None.

    Random weights are of seed 0, with batch norm statistics of random images: fresh ones let most nets' maps fade to
    nothing, where errors mean little. A function's weights are those that it set.

    Args:
        size: (H, W) of the input where it is not the model's own.
        text: a name, looked for in :data:`PACKAGES` one after the other; "package:name" for one of them;
            "package.module:function" or "path/to/file.py:function" for a function without arguments, which is run.
    Raises: UsageError for what is not there, with the nearest names; CommandError for what fails.
    """
    import torch

    first, colon, rest = text.partition(":")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if colon and first not in PACKAGES:
            return _of_function(text, weights, size)
        return _of_packages(rest if colon else text, [first] if colon else list(PACKAGES), weights, size)


def _of_packages(name: str, packages: list[str], weights: str | None, hw: Sequence[int] | None) -> NamedModel:
    names, missing = {}, []
    for package in packages:
        try:
            names[package] = _names(package)
        except ImportError as error:
            if len(packages) == 1:
                raise CommandError(f"{package}:{name}: {package} is not here ({error}): {_pip(package)}") from error
            missing.append(package)
            continue
        if not _has(package, name, names[package]):
            continue
        model, size = _BUILD[package](name)
        size = [size[0], *(hw or size[1:])]
        if weights is None:
            told = _randomise(model, size)
        else:
            told = f"weights of {weights}"
            _load(model, weights, name, name if package == "fastcnn" else None)
        return NamedModel(model.eval(), size, [f"{name} of {package}, {told}"])
    known = {each: each if package == "fastcnn" else f"{package}:{each}"
             for package in reversed(names) for each in names[package]}  # fmt: skip
    near = [known[each] for each in difflib.get_close_matches(name.lower(), known, n=5, cutoff=0.5)]
    if name.endswith(".py") or os.sep in name:
        raise UsageError(f"{name!r} names no function of that file: wanted {name}:FUNCTION, which returns a model")
    message = f"no model of {', '.join(names)} is called {name!r}"
    if near:
        message += f"; nearest: {', '.join(near)}"
    for package in missing:
        message += f"; {package} is not here: {_pip(package)}"
    raise UsageError(message)


def _randomise(model: Any, size: list[int]) -> str:
    from torch import nn

    from fastcnn.reference import calibrate

    if any(isinstance(each, nn.BatchNorm2d) for each in model.modules()):
        try:
            calibrate(model, size)
        except Exception:  # noqa: BLE001  (a net may want another input, or targets, to train)
            return "random weights (seed 0)"
        return "random weights (seed 0), batch norm statistics of random images"
    return "random weights (seed 0)"


def _pip(package: str) -> str:
    from fastcnn.reference import pip_command

    return pip_command(package)


def _names(package: str) -> list[str]:
    """What it has. Raises: ImportError where the package is not installed."""
    if package == "fastcnn":
        import fastcnn

        return fastcnn.list_models()
    if package == "torchvision":
        from torchvision.models import list_models

        return list_models()
    import timm

    return timm.list_models()


def _has(package: str, name: str, names: list[str]) -> bool:
    if package == "fastcnn":
        from fastcnn.models import canonical_name

        try:
            canonical_name(name)  # other packages' names of our nets too
        except ValueError:
            return False
        return True
    if package == "torchvision":
        return name in names
    import timm

    return timm.is_model(name)  # also with the tag of its weights


def _ours(name: str) -> tuple[Any, list[int]]:
    import fastcnn

    return fastcnn.create_model(name), fastcnn.models.metadata(name)["input_size"]


def _torchvision(name: str) -> tuple[Any, list[int]]:
    from torchvision import models

    wanted = {"weights": None, "weights_backbone": None}  # the second would be downloaded
    parameters = inspect.signature(models.get_model_builder(name)).parameters
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = models.get_model(name, **{key: None for key in wanted if key in parameters})
    try:
        preset = models.get_model_weights(name).DEFAULT.transforms()
        sides = getattr(preset, "crop_size", None) or getattr(preset, "resize_size", None) or INPUT_SIZE[1:]
    except (AttributeError, ValueError, TypeError):
        return model, INPUT_SIZE
    return model, [3, sides[0], sides[-1]]


def _timm(name: str) -> tuple[Any, list[int]]:
    import timm

    model = timm.create_model(name, pretrained=False)
    return model, list(model.pretrained_cfg.get("input_size") or INPUT_SIZE)


_BUILD: dict[str, Callable[[str], tuple[Any, list[int]]]] = {
    "fastcnn": _ours,
    "torchvision": _torchvision,
    "timm": _timm,
}


def _load(model: Any, path: str, name: str, ours: str | None) -> None:
    from fastcnn.models.weights import load_checkpoint, load_weights

    try:
        if ours is not None:
            load_weights(model, path, ours)
        else:
            load_checkpoint(model, path, name)
    except (OSError, ValueError) as error:
        raise CommandError(str(error)) from error


def _of_function(text: str, weights: str | None, hw: Sequence[int] | None) -> NamedModel:
    from torch import nn

    place, _, path = text.rpartition(":")
    if not place or not path:
        raise UsageError(f"{text!r} must be MODULE:FUNCTION or FILE.py:FUNCTION")
    module = _file(Path(place)) if place.endswith(".py") or os.sep in place else _module(place)
    try:
        function = operator.attrgetter(path)(module)
    except AttributeError as error:
        public = [name for name in vars(module) if not name.startswith("_")]
        near = difflib.get_close_matches(path, public, n=5, cutoff=0.5)
        raise UsageError(f"{place} has no {path!r}{'; nearest: ' + ', '.join(near) if near else ''}") from error
    model = function
    if not isinstance(function, nn.Module):
        if not callable(function):
            raise UsageError(f"{text} must be a function that returns a model, got {type(function).__name__}")
        with _failing(f"{text}()"):
            model = function()
    if not isinstance(model, nn.Module):
        raise UsageError(f"{text} must return an nn.Module, got {type(model).__name__}")
    notes = [f"{text}, weights {'as it set them' if weights is None else f'of {weights}'}"]
    if weights is not None:
        _load(model, weights, text, None)
    if any(each.training for each in model.modules()):
        model.eval()
        notes.append("the model came in training mode and was switched to eval mode")
    conv = next((each for each in model.modules() if isinstance(each, nn.Conv2d)), None)
    channels = conv.in_channels if conv else INPUT_SIZE[0]
    return NamedModel(model, [channels, *(hw or INPUT_SIZE[1:])], notes)


class _failing:
    """Turns any exception of the person's code into one message with the line that raised it."""

    def __init__(self, what: str) -> None:
        self.what = what

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception):
            return
        frames = traceback.extract_tb(trace)
        own = [frame for frame in frames if "site-packages" not in frame.filename and "importlib" not in frame.filename]
        place = (own or frames)[-1]
        raise CommandError(
            f"{self.what} raised {type(error).__name__}: {error} ({place.filename}:{place.lineno})"
        ) from error


def _file(path: Path) -> ModuleType:
    if not path.is_file():
        raise UsageError(f"no file {str(path)!r}")
    spec = importlib.util.spec_from_file_location(f"_fastcnn_{path.stem}", path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{str(path)!r} is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses and pickle look there
    _search(path.resolve().parent)
    with _failing(str(path)):
        spec.loader.exec_module(module)
    return module


def _module(name: str) -> ModuleType:
    missing: str | None = name
    if all(part.isidentifier() for part in name.split(".")):
        _search(Path.cwd())
        with _failing(f"import {name}"):
            try:
                return importlib.import_module(name)
            except ModuleNotFoundError as error:
                missing = error.name
                if missing is None or not (name == missing or name.startswith(f"{missing}.")):
                    raise  # the module is there, what it imports is not
    raise UsageError(f"no module is called {missing!r} here or on Python's path")


def _search(folder: Path) -> None:
    """What the person's file imports may lie beside it, as it does for `python FILE`."""
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
