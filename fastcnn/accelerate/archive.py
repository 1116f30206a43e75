# SPDX-License-Identifier: Apache-2.0
"""The saved form of an accelerated model: a zip of ``program.json`` (document.py) and ``weights.safetensors``.

Both members are stored, not compressed, and nothing else may be in the file, so that no size can be a lie. Loading runs
no code of the file: no pickle is read, operators come from the list in targets.py, their arguments are checked against
their schemas, and Python sees names only after they are known to be nothing but names.
"""

from __future__ import annotations

import json
import os
import struct
import zipfile
import zlib
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, fx, nn
from torch.utils._pytree import TreeSpec

from .document import decode, decode_graph, decode_spec, encode, encode_graph, encode_spec, short
from .stored_weights import from_bytes, pack, to_bytes, unpack
from .targets import Refused

FORMAT = 1
PROGRAM, WEIGHTS = "program.json", "weights.safetensors"
_MOST_JSON = 64 * 2**20
_KEYS = {"format", "fastcnn", "weights", "nodes", "in_spec", "out_spec", "extra"}
_BROKEN_ZIP = (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, OSError, ValueError, struct.error,
               OverflowError, MemoryError, zlib.error)  # fmt: skip


class ArchiveError(ValueError):
    """A file that is not what :func:`save` writes, or a program that cannot be saved; the message says where and why."""


class Archive(NamedTuple):
    """What :func:`load` found, as it was given to :func:`save`."""

    program: fx.GraphModule
    in_spec: TreeSpec | None
    out_spec: TreeSpec | None
    extra: dict[str, Any]


def save(
    path: str | os.PathLike[str],
    program: fx.GraphModule,
    *,
    in_spec: TreeSpec | None,
    out_spec: TreeSpec | None,
    extra: dict[str, Any],
) -> None:
    """Write ``program``, its weights and what belongs to it, whole or not at all; the same input gives the same bytes.

    Args:
        program: placeholders, weights (``get_attr``), calls of operators that :mod:`targets` lists, one output. Its
            weights are unpacked tensors of any device; channels_last ones come back channels_last, shared ones shared.
        in_spec, out_spec: of list, tuple, dict with str keys and OrderedDict, or None.
        extra: str keys; values of None, bool, int, float, str, list, tuple, dict, dtype.
    Raises: ArchiveError for a program that :func:`load` would refuse; OSError where the file cannot be written.
    """
    if not isinstance(program, fx.GraphModule):
        raise TypeError(f"save: program must be a torch.fx.GraphModule, got {type(program).__name__}")
    path = Path(path)
    try:
        listed, tensors = pack(program)
        document = _describe(program, listed, in_spec, out_spec, extra)
        text = json.dumps(document, separators=(",", ":"), allow_nan=False).encode()
        if len(text) > _MOST_JSON:
            raise Refused(f"{PROGRAM} would have {len(text)} bytes, at most {_MOST_JSON}")
        _build(_parse(text), dict(tensors))
    except Refused as error:
        raise ArchiveError(f"save: {str(path)!r}: the program cannot be saved: {error}") from None
    _write(path, {PROGRAM: text, WEIGHTS: to_bytes(tensors)})


def load(path: str | os.PathLike[str]) -> Archive:
    """Read what :func:`save` wrote, onto the CPU; no file can make it run code.

    Weights are parameters without gradient. Placeholders have ``meta["input"]`` (document.decode_graph), no other node
    has a shape.

    Raises: ArchiveError, naming file, place, what it got and what it wants; FileNotFoundError.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"load: no file {str(path)!r}")
    try:
        text, data = _read(path)
        document, tensors = _parse(text), from_bytes(data)
        del data  # as large as the weights, which are there once more and are about to be copied
        return _build(document, tensors)
    except Refused as error:
        raise ArchiveError(f"load: {str(path)!r} is refused: {error}") from None
    except RecursionError:
        raise ArchiveError(f"load: {str(path)!r} is refused: {PROGRAM} is nested too deep") from None


def _describe(program: fx.GraphModule, listed: list, in_spec: Any, out_spec: Any, extra: dict) -> dict[str, Any]:
    from .. import __version__

    if type(extra) is not dict:
        raise Refused(f"extra must be a dict, got {type(extra).__name__}")
    document = {"format": FORMAT, "fastcnn": __version__, "weights": listed, "nodes": encode_graph(program.graph)}
    for place, function, value in (("in_spec", encode_spec, in_spec), ("out_spec", encode_spec, out_spec),
                                   ("extra", encode, extra)):  # fmt: skip
        try:
            document[place] = function(value)
        except Refused as error:
            raise Refused(f"{place} has {error}") from None
    return document


def _write(path: Path, members: dict[str, bytes]) -> None:
    """Beside ``path`` first: nobody sees half a file, and what was there stays when the disk is full."""
    beside = path.with_name(f".{path.name}.{os.getpid()}-{os.urandom(4).hex()}")
    try:
        with open(beside, "xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                for name, data in members.items():
                    archive.writestr(zipfile.ZipInfo(name), data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(beside, path)
    except BaseException:
        beside.unlink(missing_ok=True)
        raise


def _read(path: Path) -> tuple[bytes, bytes]:
    if not path.is_file():
        raise Refused("it is not a file")
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            with zipfile.ZipFile(file) as archive:
                members = _members(archive, size)
                return archive.read(members[PROGRAM]), archive.read(members[WEIGHTS])
        except Refused:
            raise
        except _BROKEN_ZIP as error:
            reason = str(error)[:200] or type(error).__name__
            raise Refused(f"it is not a zip archive, damaged or cut off ({size} bytes): {reason}") from None


def _members(archive: zipfile.ZipFile, size: int) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for info in archive.infolist():
        name = info.filename
        if name not in (PROGRAM, WEIGHTS):
            raise Refused(f"member {short(name)} does not belong there, wanted {PROGRAM} and {WEIGHTS} alone")
        if name in found:
            raise Refused(f"member {name} is there twice")
        if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1 or info.compress_size != info.file_size:
            raise Refused(f"member {name} is compressed or encrypted, wanted stored as it is")
        most = min(size, _MOST_JSON) if name == PROGRAM else size
        if info.file_size > most:
            raise Refused(f"member {name} says that it has {info.file_size} bytes, at most {most} are possible")
        found[name] = info
    for name in (PROGRAM, WEIGHTS):
        if name not in found:
            raise Refused(f"member {name} is missing")
    return found


def _parse(text: bytes) -> dict[str, Any]:
    def no_constant(name: str) -> None:
        raise Refused(f"{PROGRAM}: {name} is not JSON")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise Refused(f"{PROGRAM}: a key is there twice in an object with {short([key for key, _ in pairs])}")
        return found

    try:
        document = json.loads(text.decode("utf-8"), parse_constant=no_constant, object_pairs_hook=once)
    except Refused:
        raise
    except ValueError as error:
        raise Refused(f"{PROGRAM} is not JSON: {str(error)[:200]}") from None
    if not isinstance(document, dict) or type(document.get("format")) is not int:
        raise Refused(f"{PROGRAM} must be an object with a format number, got {short(document)}")
    if document["format"] != FORMAT:
        raise Refused(
            f"it has format {short(document['format'])}, written by fastcnn {short(document.get('fastcnn'))}, wanted "
            f"format {FORMAT}: use that version of fastcnn, or accelerate the model again with this one and save it"
        )
    if document.keys() != _KEYS:
        raise Refused(f"{PROGRAM} must have the keys {', '.join(sorted(_KEYS))}, got {short(sorted(document))}")
    return document


def _build(document: dict[str, Any], tensors: dict[str, Tensor]) -> Archive:
    program = fx.GraphModule(nn.Module(), fx.Graph())
    names = unpack(program, document["weights"], tensors)
    graph = decode_graph(document["nodes"], names)
    if not isinstance(document["fastcnn"], str):
        raise Refused(f"fastcnn must be a version, got {short(document['fastcnn'])}")
    found = {}
    for place, function in (("in_spec", decode_spec), ("out_spec", decode_spec), ("extra", lambda v: decode(v, {}))):
        try:
            found[place] = function(document[place])
        except Refused as error:
            raise Refused(f"{place}: {error}") from None
    if type(found["extra"]) is not dict:
        raise Refused(f"extra must be a dict, got {short(found['extra'])}")
    try:
        program.graph = graph
        graph.lint()
    except (SyntaxError, RuntimeError) as error:
        raise Refused(f"the nodes make no program: {str(error)[:200]}") from None
    return Archive(program, found["in_spec"], found["out_spec"], found["extra"])
