# SPDX-License-Identifier: Apache-2.0
"""``fastcnn classify``: good pictures among bad ones, weights that are wrong, and what reaches stdout."""

import json
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

import fastcnn
from fastcnn.cli import main
from fastcnn.data import load_image, preprocess

MODEL = "shufflenet_v2_x0_5"


def noise(size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (size[0] * size[1] * 3,), dtype=torch.uint8, generator=generator)
    return Image.frombytes("RGB", size, pixels.numpy().tobytes())


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights whose output depends on the picture."""
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("weights") / "net.safetensors"
    net = fastcnn.create_model(MODEL)
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.mul_(2 if parameter.ndim > 1 else 1)
    save_file(net.state_dict(), path)
    return str(path)


@pytest.fixture
def pictures(tmp_path):
    for index, name in enumerate(("one.png", "sub/two.png", "sub/[red]käse\n猫.png")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        noise((260 + index, 240), seed=index).save(tmp_path / name)
    return tmp_path


def classify(capsys, *arguments):
    code = main(["classify", "--model", MODEL, "--json", *map(str, arguments)])
    captured = capsys.readouterr()
    return code, json.loads(captured.out) if captured.out else None, captured.err


def test_the_classes_are_the_models(capsys, weights, pictures):
    code, document, err = classify(capsys, pictures, "--weights", weights, "--topk", "3")
    assert code == 0 and document["errors"] == [] and err == ""
    assert [p["path"] for p in document["pictures"]] == [
        f"{pictures}/{name}" for name in ("one.png", "sub/[red]käse\n猫.png", "sub/two.png")
    ]
    net = fastcnn.create_model(MODEL, weights=weights).eval()
    for picture in document["pictures"]:
        x = preprocess(load_image(picture["path"]), fastcnn.models.metadata(MODEL))[None]
        values, classes = net(x).softmax(1).topk(3)
        assert [top["class"] for top in picture["top"]] == classes[0].tolist()
        torch.testing.assert_close(torch.tensor([[t["probability"] for t in picture["top"]]]), values.detach())
    assert document["model_ms_per_picture"] > 0


def test_a_batch_gives_what_single_pictures_give(capsys, weights, pictures):
    tops = []
    for batch in ("1", "2", "8"):
        _, document, _ = classify(capsys, pictures, "--weights", weights, "--batch", batch)
        tops.append([[top["class"] for top in p["top"]] for p in document["pictures"]])
    assert len(tops[0]) == 3 and tops[0] == tops[1] == tops[2]


def test_bad_files_are_named_and_the_rest_is_classified(capsys, weights, tmp_path):
    for name in ("whole.png", "whole.jpg"):
        noise((300, 200)).save(tmp_path / name)
    (tmp_path / "cut.png").write_bytes((tmp_path / "whole.png").read_bytes()[:9000])
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "nothing").mkdir()
    os.mkfifo(tmp_path / "pipe.jpg")
    Image.new("RGB", (1, 900_000)).save(tmp_path / "strip.png")
    names = ["cut.png", "empty.jpg", "text.jpg", "nothing", "pipe.jpg", "strip.png", "absent.png"]
    code, document, err = classify(
        capsys,
        tmp_path / "whole.png",
        *(tmp_path / name for name in names),
        tmp_path / "whole.jpg",
        "--weights",
        weights,
    )
    assert code == 1
    assert [os.path.basename(p["path"]) for p in document["pictures"]] == ["whole.png", "whole.jpg"]
    assert sorted(os.path.basename(e["path"]) for e in document["errors"]) == sorted(names)
    lines = err.splitlines()
    assert len(lines) == len(names) and all(any(f"/{n}: " in line for line in lines) for n in names)


def test_plain_on_a_pipe_and_rich_on_a_terminal(capsys, weights, pictures, monkeypatch):
    arguments = ["classify", "--model", MODEL, "--weights", weights, "--topk", "2", str(pictures)]
    assert main(arguments) == 0
    captured = capsys.readouterr()
    lines = captured.out.splitlines()
    assert len(lines) == 2 + 3 * 2 + 1 and lines[1].split() == ["picture", "class", "name", "probability"]
    assert any("sub/[red]käse\\n猫.png  " in line for line in lines) and "\x1b" not in captured.out
    assert "3 pictures, shufflenet_v2_x0_5: " in captured.err and "ms each (batch 1" in captured.err
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "400")  # a wrapped path would hide its name
    assert main(arguments) == 0
    assert "[red]käse" in capsys.readouterr().out.replace("\n", "")


def test_unknown_model_and_missing_weights_are_usage_mistakes(capsys, pictures):
    assert main(["classify", "--model", "mobilenet_v9", str(pictures)]) == 2
    captured = capsys.readouterr()
    assert captured.out == "" and "mobilenet_v9" in captured.err and "mobilenet_v2" in captured.err
    assert main(["classify", "--model", MODEL, str(pictures)]) == 2
    err = capsys.readouterr().err
    assert "--weights PATH" in err and "mobilenet_v2" in err and "Traceback" not in err


def payload(path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {path}.executed",)

    torch.save({"features.0.0.weight": Payload()}, path)


def wrong_keys(path):
    torch.save({"features.0.0.weight": torch.zeros(3), "surplus": torch.zeros(1)}, path)


@pytest.mark.parametrize(
    "write, wanted",
    [
        (lambda path: None, "net.pth"),
        (lambda path: path.write_bytes(b""), ""),
        (lambda path: path.write_text("hello"), ""),
        (payload, ""),
        (wrong_keys, "surplus"),
    ],
    ids=["absent", "empty", "text", "pickle-payload", "wrong-keys"],
)
def test_wrong_weights_are_one_message(capsys, pictures, tmp_path, write, wanted):
    write(tmp_path / "net.pth")
    code, document, err = classify(capsys, pictures, "--weights", tmp_path / "net.pth")
    assert code == 1 and document is None
    assert err.startswith("fastcnn classify: ") and wanted in err and "Traceback" not in err
    assert not (tmp_path / "net.pth.executed").exists()


def test_overflowing_weights_and_too_many_classes(capsys, weights, pictures, tmp_path):
    code, _, err = classify(capsys, pictures, "--weights", weights, "--topk", "1001")
    assert code == 2 and "--topk must be at most 1000, the model's classes, got 1001" in err
    state = fastcnn.create_model(MODEL).state_dict()
    next(iter(state.values())).fill_(3e38)
    save_file(state, tmp_path / "huge.safetensors")
    code, document, err = classify(capsys, pictures, "--weights", tmp_path / "huge.safetensors")
    assert code == 1 and document["pictures"] == [] and err.count("the model's output is not finite") == 3


def test_names_that_are_no_utf8_on_a_terminal_without_unicode(weights, tmp_path):
    path = os.path.join(os.fsencode(tmp_path), b"\xff\xc3\xa4.png")
    with open(path, "wb") as file:
        noise((40, 40)).save(file, "png")
    command = [sys.executable, "-m", "fastcnn", "classify", "--model", MODEL, "--weights", weights, path]
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(command, capture_output=True, env=environment)
    assert done.returncode == 0 and b"\\udcff\\xe4.png" in done.stdout, done.stderr
