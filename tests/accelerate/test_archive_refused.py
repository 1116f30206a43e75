# SPDX-License-Identifier: Apache-2.0
"""Files that nobody may load: hostile, of another version, no archives at all. Each is an ArchiveError, and nothing of it runs."""

import json
import os
import pickle
import struct
import warnings
import zipfile

import pytest
import safetensors.torch
import torch

from fastcnn.accelerate.archive import ArchiveError, load, save

from .test_archive import SPEC, document_of, forged, small_program


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    path = tmp_path_factory.mktemp("archive") / "net.fcnn"
    torch.manual_seed(0)
    save(path, small_program(), in_spec=None, out_spec=SPEC, extra={"a": [1, (2.5, None)], "b": {"c": float("nan")}})
    return path


@pytest.fixture(autouse=True)
def nothing_runs(monkeypatch):
    def run(*args, **kwargs):
        pytest.fail(f"loading ran code: {args}")

    for owner, name in ((os, "system"), (torch, "load"), (pickle, "loads"), (pickle, "load"), (pickle, "Unpickler")):
        monkeypatch.setattr(owner, name, run)


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return (os.mkdir, (str(self.folder),))


def node(document, target):
    return next(n for n in document["nodes"] if n.get("target") == target or n["op"] == target)


def change(target, /, **new):
    def apply(document):
        node(document, target).update(new)

    return apply


def nested(depth):
    value = []
    for _ in range(depth):
        value = [value]
    return value


CONV = "fastcnn.conv_bn_act.default"
CASES = {
    "python function": (change(CONV, target="os.system"), r"node 6 .*target must be an operator .* got 'os.system'"),
    "builtin": (change(CONV, target="builtins.eval"), "got 'builtins.eval'"),
    "dunder": (change(CONV, target="operator.__class__"), "got 'operator.__class__'"),
    "methodcaller": (change(CONV, target="operator.methodcaller"), "got 'operator.methodcaller'"),
    "torch.load": (change(CONV, target="torch.load"), "got 'torch.load'"),
    "set_": (change(CONV, target="aten.set_.source_Tensor"), "got 'aten.set_.source_Tensor'"),
    "from_file": (change(CONV, target="aten.from_file.default"), "from_file"),
    "as_strided": (change(CONV, target="aten.as_strided.default"), "as_strided"),
    "resize_": (change(CONV, target="aten.resize_.default"), "resize_"),
    "backward": (change(CONV, target="fastcnn.conv_bn_act_backward.default"), "conv_bn_act_backward"),
    "unknown": (change(CONV, target="fastcnn.conv_bn_act.other"), "got 'fastcnn.conv_bn_act.other'"),
    "no string": (change(CONV, target=["aten.add.Tensor"]), r"got \['aten.add.Tensor'\]"),
    "call_method": (change(CONV, op="call_method"), "op must be one of placeholder, get_attr.*got 'call_method'"),
    "call_module": (change(CONV, op="call_module"), "got 'call_module'"),
    "extra key": (change(CONV, code="import os"), r"unknown keys \['code'\]"),
    "get_attr path": (change("stem.0.weight", target="__class__"), "target must be a weight of this file"),
    "get_attr forward": (change("stem.0.weight", target="forward.__globals__"), "target must be a weight"),
    "later node": (change("aten.split.Tensor", args=[{"node": "cat_default"}, 4, 1]), "'cat_default', which is no earlier"),
    "itself": (change("aten.split.Tensor", args=[{"node": "split_tensor"}, 4, 1]), "which is no earlier node"),
    "too few": (change(CONV, args=[{"node": "x"}]), "conv_bn_act.default: argument 'weight' is missing"),
    "too many": (change("aten.sym_size.int", args=[{"node": "x"}, 0, 0]), "takes at most 2 positional arguments, got 3"),
    "unknown argument": (change("aten.linear.default", kwargs={"dict": {"out": None}}), "argument 'out' is unknown"),
    "given twice": (change("aten.sym_size.int", kwargs={"dict": {"dim": 0}}), "'dim' is unknown or given twice"),
    "str for Tensor": (change(CONV, args=["x"] * 14), "x must be Tensor, got 'x'"),
    "float for int": (change("aten.sym_size.int", args=[{"node": "x"}, 0.5]), "dim must be int, got 0.5"),
    "kwargs": (change(CONV, kwargs=[]), "args must be a list and kwargs a dict"),
    "getitem of a tensor": (change("operator.getitem", args=[{"node": "x"}, 0]), "getitem takes a result of several"),
    "getitem by name": (change("operator.getitem", args=[{"node": "split_tensor"}, "__class__"]), "getitem takes"),
    "python numbers": (change("operator.mul", args=["a", 9]), "operator.mul takes 2 numbers, got 'a', 9"),
    "name is code": (change(CONV, name="x = 1; import os"), "must have a name of its own"),
    "name is a keyword": (change(CONV, name="lambda"), "must have a name of its own"),
    "name is taken": (change(CONV, name="x"), "must have a name of its own"),
    "name is a builtin": (change(CONV, name="eval"), "that Python or torch.fx keeps"),
    "self": (change("placeholder", name="self", target="self"), "must have a name of its own"),
    "argument's name": (change("placeholder", target="y"), "target must be the name without"),
    "input shape": (change("placeholder", shape=[-1]), "shape must be a list of sizes and null"),
    "input dtype": (change("placeholder", dtype="quint8"), "dtype must be one of float64.*got 'quint8'"),
    "unknown tag": (change("output", value={"eval": "1"}), "the tag 'eval' with '1', which means nothing"),
    "two tags": (change("output", value={"node": "x", "float": "inf"}), "wanted one tag"),
    "dtype by name": (change("output", value={"dtype": "load"}), "the tag 'dtype' with 'load'"),
    "device": (change("output", value={"device": "cpu; import os"}), "the tag 'device'"),
    "unknown device": (change("output", value={"device": "nonsense"}), "'nonsense', which this torch does not know"),
    "big number": (change("output", value=2**70), "no 64-bit integer"),
    "deep value": (change("output", value=nested(60)), "nested deeper than 24"),
    "no output": (lambda d: d["nodes"].pop(), "the output must be the last node"),
    "two outputs": (lambda d: d["nodes"].append(d["nodes"][-1] | {"name": "o2"}), "the output must be the last node"),
    "no nodes": (lambda d: d.update(nodes=[]), "nodes must be a list"),
    "node is no object": (lambda d: d["nodes"].insert(0, 5), "node 0 must be an object"),
    "version": (lambda d: d.update(format=2), "has format 2, written by fastcnn '.*', wanted format 1: use that version"),
    "format is no number": (lambda d: d.update(format=True), "an object with a format number"),
    "missing key": (lambda d: d.pop("extra"), "must have the keys extra, fastcnn"),
    "spec": (lambda d: d.update(out_spec={"enum": "os:x"}), "out_spec: the tag 'enum'"),
    "spec leaf": (lambda d: d.update(out_spec=["*", 1]), "out_spec: a structure with a leaf"),
    "extra": (lambda d: d.update(extra=[]), "extra must be a dict"),
    "extra node": (lambda d: d.update(extra={"dict": {"a": {"node": "x"}}}), "extra: refers to 'x'"),
    "weight not stored": (lambda d: d["weights"][0].update(name="other"), r"weight 0 \('other'\) is not among the stored"),
    "weight not listed": (lambda d: d["weights"].pop(), "1 stored weights are not listed: .'head.scale'."),
    "weight is a method": (lambda d: d["weights"][0].update(name="forward"), "weight 0.*is not among"),
    "weight path": (lambda d: d["weights"][0].update(name="a.__class__.b"), "weight 0 .*plain dotted name"),
    "weight quote": (lambda d: d["weights"][0].update(name='a-b").x'), "weight 0 .*plain dotted name"),
    "weight twice": (lambda d: d["weights"].append(d["weights"][0]), "plain dotted name of its own"),
    "weight kind": (lambda d: d["weights"][0].update(kind="code"), "a kind of"),
    "shared with a later one": (lambda d: d["weights"][4].update(same_as="head.scale"), "the same as an earlier weight"),
    "memory format": (lambda d: d["weights"][2].update(memory_format="channels_last"), "must have 4 dimensions, got 1"),
    "memory format's name": (lambda d: d["weights"][1].update(memory_format=[]), "must have a memory_format of"),
    "alias of a method": (lambda d: d["weights"][4].update(name="train"), "stands for something else in a module"),
    "alias of a module": (lambda d: d["weights"][4].update(name="stem"), "stands for something else in a module"),
    "alias inside a weight": (lambda d: d["weights"][4].update(name="head.weight.x"), "stands for something else"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_doctored_program(case, good):
    apply, message = CASES[case]
    document = document_of(good)
    apply(document)
    with pytest.raises(ArchiveError, match=rf"load: '.*forged.fcnn' is refused: .*{message}"):
        load(forged(good, document))


@pytest.mark.parametrize(("text", "message"), [
    (b"", "program.json is not JSON"), (b"\xff\xfe{}", "is not JSON: 'utf-8' codec"), (b"[1, 2]", "an object with a format"),
    (b'{"format": 1, "format": 1}', "a key is there twice"), (b'{"format": NaN}', "NaN is not JSON"),
    (b"[" * 300_000 + b"]" * 300_000, "nested too deep"), (b'{"format": ' + b"9" * 5000 + b"}", "refused"),
])  # fmt: skip
def test_a_program_that_is_no_document(text, message, good):
    with pytest.raises(ArchiveError, match=message):
        load(forged(good, text))


@pytest.mark.parametrize("member", ["data.pkl", "net/data.pkl", "../../evil.py", "/etc/passwd", "x\1y", "Program.json"])
def test_other_members(member, good, tmp_path):
    bad = forged(good, document_of(good), **{member: pickle.dumps(Payload(tmp_path / "ran"))})
    with pytest.raises(ArchiveError, match=r"member '.*' does not belong there, wanted program.json and weights"):
        load(bad)
    assert list(tmp_path.iterdir()) == []


def test_a_pickle_in_place_of_a_member(good, tmp_path):
    payload = pickle.dumps(Payload(tmp_path / "ran"))
    with pytest.raises(ArchiveError, match="not a safetensors file"):
        load(forged(good, document_of(good), weights=payload))
    with pytest.raises(ArchiveError, match="program.json is not JSON"):
        load(forged(good, payload))
    (tmp_path / "bare.pkl").write_bytes(payload)
    with pytest.raises(ArchiveError, match="it is not a zip archive"):
        load(tmp_path / "bare.pkl")
    torch.save({"a": Payload(tmp_path / "ran")}, tmp_path / "net.pt2")
    with pytest.raises(ArchiveError, match="'net/data.pkl' does not belong there"):
        load(tmp_path / "net.pt2")
    assert not (tmp_path / "ran").exists()


def test_zips_that_lie(good, tmp_path):
    document, bad = json.dumps(document_of(good)), tmp_path / "bad"
    with zipfile.ZipFile(good) as file:
        weights = file.read("weights.safetensors")

    def refused(message, *members, compression=zipfile.ZIP_STORED):
        with warnings.catch_warnings(), zipfile.ZipFile(bad, "w", compression) as file:
            warnings.simplefilter("ignore")
            for name, data in members:
                file.writestr(name, data)
        with pytest.raises(ArchiveError, match=message):
            load(bad)

    refused("weights.safetensors is missing", ("program.json", document))
    refused("program.json is missing", ("weights.safetensors", weights))
    refused("program.json is missing")
    refused("program.json is there twice", *[("program.json", document)] * 2, ("weights.safetensors", weights))
    both = (("program.json", document), ("weights.safetensors", weights))
    refused("program.json is compressed", *both, compression=zipfile.ZIP_DEFLATED)
    refused("program.json is compressed", ("program.json", bytes(10**8)), both[1], compression=zipfile.ZIP_DEFLATED)

    whole = good.read_bytes()
    at = whole.index(b"PK\1\2")
    bad.write_bytes(whole[: at + 20] + struct.pack("<II", 2**31, 2**31) + whole[at + 28 :])
    with pytest.raises(ArchiveError, match=r"program.json says that it has 2147483648 bytes, at most \d+ are possible"):
        load(bad)
    bad.write_bytes(whole[: at + 8] + b"\1" + whole[at + 9 :])
    with pytest.raises(ArchiveError, match="program.json is compressed or encrypted"):
        load(bad)


def test_bad_weights(good):
    with zipfile.ZipFile(good) as file:
        weights = safetensors.torch.load(file.read("weights.safetensors"))
    spoilt = {
        r"NaN or infinity in 2 weights: ": {"stem.0.weight": torch.full((8, 4, 3, 3), torch.inf),
                                            "stem.0.bias": torch.full((8,), torch.nan)},
        "must be of float64.*got torch.complex64": {"stem.0.bias": torch.ones(8, dtype=torch.complex64)},
    }  # fmt: skip
    for message, change in spoilt.items():
        with pytest.raises(ArchiveError, match=message):
            load(forged(good, document_of(good), weights=safetensors.torch.save(weights | change)))
    data = safetensors.torch.save(weights | {"stem.0.bias": torch.ones(8, dtype=torch.bool)})
    with pytest.raises(ArchiveError, match="'stem.0.bias' has bool values other than 0 and 1"):
        load(forged(good, document_of(good), weights=data.replace(b"\1" * 8, b"\7" * 8)))
    with pytest.raises(ArchiveError, match="not a safetensors file"):
        load(forged(good, document_of(good), weights=data[:-1]))


def test_what_is_no_file(tmp_path):
    with pytest.raises(FileNotFoundError, match="load: no file"):
        load(tmp_path / "nothing")
    with pytest.raises(ArchiveError, match="it is not a file"):
        load(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ArchiveError, match="it is not a file"):
        load(tmp_path / "pipe")
