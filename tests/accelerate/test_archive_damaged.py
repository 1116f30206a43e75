# SPDX-License-Identifier: Apache-2.0
"""Files with a random fault: what they hold is read as it stands there, or the file is refused."""

import copy
import json
import random

import pytest
import torch

from fastcnn.accelerate.archive import ArchiveError, load, save
from fastcnn.accelerate.document import encode_graph
from fastcnn.accelerate.stored_weights import pack

from .test_archive import SPEC, document_of, forged, small_program


@pytest.fixture
def good(tmp_path):
    save(tmp_path / "net.fcnn", small_program(), in_spec=None, out_spec=SPEC, extra={"a": [1, (2.5, None)]})
    return tmp_path / "net.fcnn"


def damaged(whole: bytes, draw: random.Random) -> bytes:
    at, length = draw.randrange(len(whole)), draw.choice([1, 2, 8, 100])
    kind = draw.choice(["flip", "cut", "drop", "insert", "zero", "swap", "tail"])
    if kind == "flip":
        return whole[:at] + bytes([whole[at] ^ (1 << draw.randrange(8))]) + whole[at + 1 :]
    if kind == "cut":
        return whole[:at]
    if kind == "tail":  # where the zip's directory stands
        at = len(whole) - 1 - draw.randrange(160)
        return whole[:at] + draw.randbytes(1) + whole[at + 1 :]
    middle = {"drop": b"", "insert": whole[at : at + length] + draw.randbytes(length), "zero": bytes(length),
              "swap": whole[at : at + length][::-1]}  # fmt: skip
    return whole[:at] + middle[kind] + whole[at + length :]


def test_two_hundred_damaged_files(good, tmp_path):
    whole, document = good.read_bytes(), document_of(good)
    weights = pack(load(good).program)[1]
    refused = 0
    for i in range(200):
        bad = tmp_path / "bad"
        bad.write_bytes(damaged(whole, random.Random(i)))
        try:
            got = load(bad).program
        except ArchiveError:
            refused += 1
            continue
        assert encode_graph(got.graph) == document["nodes"], i
        assert all(torch.equal(each, weights[name]) for name, each in pack(got)[1].items()), i
    assert refused > 150


POOL = [None, True, -1, 0, 2**63, 10**400, 1.5, "", "x", "os.system", "aten.set_.source_Tensor", "__class__", [], {}, [[]],
        {"node": "x"}, {"node": "__class__"}, {"float": "inf"}, {"tuple": []}, {"dtype": "float16"}, "operator.getitem"]  # fmt: skip


def mutated(document, draw: random.Random):
    document = copy.deepcopy(document)
    for _ in range(draw.choice([1, 1, 2])):
        place = document
        while True:
            key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
            if isinstance(place[key], (dict, list)) and place[key] and draw.random() < 0.8:
                place = place[key]
                continue
            if draw.random() < 0.2:
                del place[key]
            else:
                place[key] = copy.deepcopy(draw.choice(POOL))
            break
    return document


def test_two_hundred_mutated_programs(good):
    document, refused = document_of(good), 0
    for i in range(200):
        other = mutated(document, random.Random(i))
        try:
            got = load(forged(good, other))
        except ArchiveError:
            refused += 1
            continue
        assert json.dumps(encode_graph(got.program.graph)) == json.dumps(other["nodes"]), i
        assert pack(got.program)[0] == other["weights"], i
    assert 100 < refused < 200
