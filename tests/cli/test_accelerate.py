# SPDX-License-Identifier: Apache-2.0
"""``fastcnn accelerate``: the report for people and machines, the files it writes, every mistake in one line."""

import json
import math
import sys

import pytest
import torch

import fastcnn
from fastcnn.cli import accelerate, main
from fastcnn.cli.models import find_model

NETS = """
import torch
from torch import nn
from beside import WIDTH

def net(act=nn.ReLU6):
    torch.manual_seed(3)
    body = nn.Sequential(nn.Conv2d(WIDTH, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), act())
    return nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)).eval()

class Branches(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 1)

    def forward(self, x):
        return self.conv(x) if x.sum() > 0 else x

def odd(): return net(nn.GELU)
def training(): return net().train()
def half(): return net().bfloat16()
def broken(): return net().conv
def text(): return "net"
def nothing(): return nn.Identity()
def nan():
    found = net()
    nn.init.constant_(found[3].weight, float("nan"))
    return found
instance = net()
number = 3
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "beside", raising=False)
    (tmp_path / "beside.py").write_text("WIDTH = 3\n")
    path = tmp_path / "nets.py"
    path.write_text(NETS)
    return str(path)


def fails(capsys, code, *arguments):
    """The one line of a run that fails."""
    assert main(["accelerate", *arguments]) == code
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert len(lines) == 1 and lines[0].startswith("fastcnn accelerate: ") and "accelerate: accelerate" not in lines[0]
    return lines[0]


def document(capsys, *arguments):
    assert main(["accelerate", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def test_the_report_on_a_pipe(nets, capsys):
    assert main(["accelerate", f"{nets}:net", "--size", "16x24", "--batch", "2", "--threads", "1"]) == 0
    out = capsys.readouterr().out
    first = out.splitlines()[0]
    assert first.startswith("Sequential, input 2x3x16x24, float32, TF32 ") and "1 threads: accelerated" in first
    words = [line.split() for line in out.splitlines()]
    assert ["fold_batch_norm", "1"] in words
    assert ["fastcnn.conv_bn_act", "1"] in [line[:2] for line in words]
    assert any(line[:2] == ["aten.linear", "1"] and "matrix product" in " ".join(line) for line in words)
    assert any(line[:1] == ["launches"] and int(line[1]) > int(line[2]) for line in words)
    for row in ("example", "random inputs", "time, ms", "MB an image, counted"):
        assert f"\n{row} " in out
    assert f"note: {nets}:net, weights as it set them\n" in out


def test_the_report_on_a_terminal(nets, capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    assert main(["accelerate", f"{nets}:odd", "--size", "16"]) == 0
    out = capsys.readouterr().out
    assert "Runs" in out and "─" in out and "aten.gelu" in out and "no kernel of ours" in out


def test_json_is_the_report(nets, capsys):
    found = document(
        capsys, f"{nets}:net", "--size", "16", "--dtype", "bfloat16", "--off", "fold_batch_norm", "depthwise"
    )
    assert found["accelerated"] and found["model"] == "Sequential" and found["dtype"] == "bfloat16"
    assert found["fused"]["fold_batch_norm"] == 0 and found["operators"]["fastcnn.batch_norm_act"]["count"] == 1
    assert found["errors"]["example"]["fp64"] <= found["errors"]["example"]["allowed"]
    assert set(found) == set(fastcnn.accelerate.Report("").to_dict())


def test_the_plot_has_two_bars_a_layer(nets, capsys, tmp_path):
    path = tmp_path / "out.png"
    found = document(capsys, f"{nets}:net", "--size", "16", "--plot", str(path))
    assert path.read_bytes().startswith(b"\x89PNG")
    assert [row["layer"] for row in found["layers"]][:3] == ["0.0", "0.1", "0.2"]
    assert all(row["before"] >= 0 and row["after"] >= 0 for row in found["layers"])
    rows = [fastcnn.accelerate.layers.LayerTime(*row.values()) for row in found["layers"]]
    (axes,) = accelerate.draw(rows, "net").axes
    widths = [[bar.get_width() for bar in bars] for bars in axes.containers]
    assert widths == [[row.before for row in rows], [row.after for row in rows]]
    assert [label.get_text() for label in axes.get_yticklabels()] == [row.layer for row in rows]
    before, after = map(sum, widths)
    assert axes.get_title() == f"net: {before:.2f} ms before, {after:.2f} ms after"
    accelerate.print_layers(rows)
    out = capsys.readouterr().out
    assert "in all" in out and "operators run one by one" in out and " linear" in out


def test_the_files_compute_the_same(nets, capsys, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    saved, exported = tmp_path / "net.fcnn", tmp_path / "net.onnx"
    assert main(["accelerate", f"{nets}:net", "--size", "16", "--save", str(saved), "--onnx", str(exported)]) == 0
    capsys.readouterr()
    x = torch.randn(3, 3, 16, 16)
    wanted = find_model(f"{nets}:net").model(x)
    torch.testing.assert_close(fastcnn.load(saved)(x), wanted, rtol=1e-5, atol=1e-6)
    session = onnxruntime.InferenceSession(exported)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), wanted, rtol=1e-5, atol=1e-6)


def test_weights_of_a_file(nets, capsys, tmp_path):
    path = tmp_path / "weights.pt"
    state = {key: 2 * value for key, value in find_model(f"{nets}:net").model.state_dict().items()}
    torch.save(state, path)
    saved = tmp_path / "net.fcnn"
    arguments = [f"{nets}:net", "--size", "16", "--weights", str(path)]
    notes = document(capsys, *arguments, "--save", str(saved))["notes"]
    assert f"{nets}:net, weights of {path}" in notes
    linear = [p for p in fastcnn.load(saved).parameters() if p.shape == (5, 8)]
    assert torch.equal(linear[0], state["3.weight"])
    torch.save({"a": torch.zeros(1)}, path)
    assert main(["accelerate", *arguments]) == 1
    err = capsys.readouterr().err
    assert "does not fit: 7 missing, 1 extra" in err and "Traceback" not in err
    path.unlink()
    assert f"no file {str(path)!r}" in fails(capsys, 1, *arguments)


def test_functions_of_every_kind(nets, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets", raising=False)
    assert document(capsys, "nets:net", "--size", "8")["notes"][0] == "nets:net, weights as it set them"
    assert document(capsys, "nets.py:instance", "--size", "8")["model"] == "Sequential"
    notes = document(capsys, "nets.py:training", "--size", "8")["notes"]
    assert notes[1] == "the model came in training mode and was switched to eval mode"
    assert document(capsys, "nets.py:half", "--size", "8")["dtype"] == "bfloat16"


@pytest.mark.parametrize(("what", "code", "wanted"), [
    ("{nets}:nets", 2, "has no 'nets'; nearest: net"),
    ("{nets}:number", 2, "number must be a function that returns a model, got int"),
    ("{nets}:text", 2, "text must return an nn.Module, got str"),
    ("{nets}:broken", 1, "broken() raised AttributeError: 'Sequential' object has no attribute 'conv' ("),
    ("{nets}", 2, "names no function of that file"),
    ("{nets}:", 2, "must be MODULE:FUNCTION or FILE.py:FUNCTION"),
    ("no/such/file.py:net", 2, "no file 'no/such/file.py'"),
    ("no_such_module:net", 2, "no module is called 'no_such_module'"),
    ("json.no_such_module:net", 2, "no module is called 'json.no_such_module'"),
    ("not-a-name:net", 2, "no module is called 'not-a-name'"),
    ("{nets}:Branches", 1, "model Branches cannot be captured by torch.export"),
    ("{nets}:nan", 1, "model must have finite weights, got NaN or infinity in 3.weight"),
])  # fmt: skip
def test_wrong_functions(nets, capsys, what, code, wanted):
    assert wanted in fails(capsys, code, what.format(nets=nets), "--size", "8")


def test_a_file_that_fails_names_its_line(nets, capsys, tmp_path):
    (tmp_path / "beside.py").write_text("import no_such_package\n")
    message = fails(capsys, 1, f"{nets}:net")
    assert f"{nets} raised ModuleNotFoundError: No module named 'no_such_package'" in message
    assert message.endswith("beside.py:1)")


def test_a_result_that_is_off_is_reported_and_fails(nets, capsys, monkeypatch, tmp_path):
    row = {
        "absolute": math.inf,
        "relative": math.inf,
        "top1": 0.0,
        "fp64": None,
        "original_fp64": None,
        "allowed": 1e-5,
    }
    monkeypatch.setattr(fastcnn.accelerate.verify, "errors", lambda model, fast, inputs: (row, "not in fp64"))
    path = tmp_path / "net.fcnn"
    arguments = ["accelerate", f"{nets}:net", "--size", "8", "--save", str(path)]
    assert main([*arguments, "--json"]) == 1
    captured = capsys.readouterr()
    found = json.loads(captured.out)
    assert not found["accelerated"] and found["errors"]["example"]["relative"] is None
    assert captured.err.startswith("fastcnn accelerate: the output on example differs by inf")
    assert main(arguments) == 1
    out = capsys.readouterr().out
    assert "returned as it is: the output on example differs by inf" in out and "note: not in fp64" in out
    assert not path.exists()


@pytest.mark.parametrize("option", ["--save", "--onnx", "--plot"])
def test_files_are_looked_at_before_the_work(nets, capsys, option, tmp_path):
    assert "cannot be written: no folder 'no/such'" in fails(capsys, 1, f"{nets}:net", option, "no/such/file.png")
    assert f"{str(tmp_path)!r} cannot be written: a folder" in fails(capsys, 1, f"{nets}:net", option, str(tmp_path))


@pytest.mark.parametrize(("option", "place"), [
    ("--save", "fastcnn.accelerate.module.write_archive"), ("--onnx", "fastcnn.onnx.export"),
    ("--plot", "matplotlib.figure.Figure.savefig"),
])  # fmt: skip
@pytest.mark.parametrize("error", [OSError("no space left"), ValueError("operator aten.odd")])
def test_what_cannot_be_written_fails_after_the_report(nets, capsys, option, place, error, monkeypatch):
    def refuse(*args, **kwargs):
        raise error

    pytest.importorskip(place.split(".")[0] if option == "--plot" else "onnxscript" if option == "--onnx" else "torch")
    monkeypatch.setattr(place, refuse)
    assert main(["accelerate", f"{nets}:net", "--size", "8", option, f"{nets}.out"]) == 1
    captured = capsys.readouterr()
    assert captured.out.startswith("Sequential")
    assert (
        captured.err.startswith(f"fastcnn accelerate: '{nets}.out' cannot be written: ") and str(error) in captured.err
    )


@pytest.mark.parametrize("module", ["onnx", "matplotlib"])
def test_a_missing_package_is_named_with_its_command(nets, capsys, monkeypatch, module):
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.delitem(sys.modules, "fastcnn.onnx", raising=False)
    option = {"onnx": "--onnx", "matplotlib": "--plot"}[module]
    assert main(["accelerate", f"{nets}:net", "--size", "8", option, f"{nets}.png"]) == 1
    err = capsys.readouterr().err
    assert f"{sys.executable} -m pip install {module}" in err and "Traceback" not in err


@pytest.mark.parametrize("arguments", [
    ["--size", "0"], ["--size", "8x"], ["--batch", "0"], ["--dtype", "int8"], ["--threads", "x"], ["--off"],
], ids=" ".join)  # fmt: skip
def test_usage_mistakes_of_options(nets, capsys, arguments):
    with pytest.raises(SystemExit) as exit_:
        main(["accelerate", f"{nets}:net", *arguments])
    assert exit_.value.code == 2 and capsys.readouterr().err.startswith("usage: fastcnn accelerate")


def test_an_unknown_rewrite_is_a_usage_mistake(nets, capsys):
    message = fails(capsys, 2, f"{nets}:net", "--off", "fold_batchnorm")
    assert "--off: mapping must name rewrites, got 'fold_batchnorm'; nearest: fold_batch_norm" in message
