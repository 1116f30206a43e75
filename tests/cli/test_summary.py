# SPDX-License-Identifier: Apache-2.0
"""``fastcnn summary``: the counts that a lecture on VGG-16 gives, ours like torchvision's, the plot."""

import json
import sys

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from fastcnn.analysis import summarize
from fastcnn.cli import main
from fastcnn.cli.summary import summary_of
from fastcnn.models import create_model, metadata

MB, GB = 2**20, 2**30
SIX = ["efficientnet_b0", "efficientnet_lite0", "mobilenet_v1_timm", "mobilenet_v3_small", "shufflenet_v2_x0_5"]


def document(capsys, *arguments):
    assert main(["summary", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["torchvision:vgg16", "vgg16"])
def test_the_lectures_vgg16(name, capsys):
    vgg = document(capsys, name, "--batch", "128")
    assert vgg["parameters"] == 138_357_544 and round(vgg["parameter_bytes"] / MB, 2) == 527.79
    assert vgg["activation_bytes"] == 4 * 15_237_608 and round(vgg["activation_bytes"] / MB, 3) == 58.127
    training = vgg["training_bytes"]
    assert round(training["activations, forward and backward"] / GB, 2) == 14.53
    assert round((training["weights"] + training["gradients"] + training["optimizer state"]) / GB, 3) == 1.546
    assert round(vgg["training_bytes_in_all"] / GB, 2) == 16.08
    assert vgg["macs"] == 15_470_264_320
    fc6 = next(layer for layer in vgg["layers"] if layer["name"] == "classifier.0")
    assert round(fc6["parameters"] / vgg["parameters"], 3) == 0.743
    assert [layer["kind"] for layer in vgg["layers"]].count("conv 3x3") == 13
    assert main(["summary", name, "--batch", "128"]) == 0
    out = capsys.readouterr().out
    for cell in ("138,357,544", "527.79 MB", "15,237,608", "58.127 MB", "14.532 GB", "16.078 GB", "features.28"):
        assert cell in out


@pytest.mark.parametrize(("optimizer", "copies"), [("sgd", 0), ("momentum", 1), ("adam", 2)])
def test_what_optimizers_keep(optimizer, copies, capsys):
    net = document(capsys, "mobilenet_v1_x0_25", "--optimizer", optimizer)
    assert net["training_bytes"]["optimizer state"] == copies * net["parameter_bytes"] == copies * 4 * 470_072


@pytest.mark.parametrize("name", SIX)
def test_layers_add_up(name):
    summary = summary_of(name)
    with torch.device("meta"):
        net = create_model(name).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net(torch.empty(1, *metadata(name)["input_size"], device="meta"))
    assert summary.parameters == sum(p.numel() for p in net.parameters())
    assert 2 * summary.macs == counter.get_total_flops()
    owners = {module for module, _ in net.named_modules()}
    assert all(layer.name in owners for layer in summary.layers[1:])


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mobilenet_v3_large", "torchvision:mobilenet_v3_large"),
        ("efficientnet_lite0", "timm:tf_efficientnet_lite0"),
        ("mobilenet_v1_timm", "timm:mobilenetv1_100"),
    ],
)
def test_a_fused_net_has_the_convolutions_of_its_reference(ours, theirs):
    def layers(name):
        kinds = ("conv", "depthwise", "linear")
        found = summary_of(name).layers
        return [(x.kind, x.output_shape, x.macs, x.activation_bytes) for x in found if x.kind.startswith(kinds)]

    def main_path(name):  # the squeeze-excite is one op in ours
        return [layer for layer in layers(name) if layer[1][1:] != [1, 1]]

    assert main_path(ours) == main_path(theirs)
    assert summary_of(ours).parameters == summary_of(theirs).parameters


def test_the_rule_on_a_net_by_hand():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.relu = nn.Conv2d(3, 8, 3, 2, 1), nn.BatchNorm2d(8), nn.ReLU()
            self.pool, self.fc, self.unused = nn.AdaptiveAvgPool2d(4), nn.Linear(256, 5), nn.Linear(2, 2)

        def forward(self, x):
            y = self.relu(self.bn(self.conv(x)))
            y = torch.cat([y, self.pool(y) + y], 1)  # the pool changes nothing: the map is 4x4
            return self.fc(y.flatten(1))

    with torch.device("meta"):
        summary = summarize(Net(), [3, 8, 8], batch=2, optimizer="adam")
    assert [(x.name, x.kind, x.output_shape, x.parameters, x.macs, x.activation_bytes) for x in summary.layers] == [
        ("input", "input", [3, 8, 8], 0, 0, 4 * 192),
        ("conv", "conv 3x3 / 2", [8, 4, 4], 224, 27 * 128, 4 * 128),
        ("bn", "norm", [8, 4, 4], 16, 0, 0),
        ("", "add", [8, 4, 4], 0, 0, 4 * 128),
        ("", "concat", [16, 4, 4], 0, 0, 4 * 256),
        ("fc", "linear", [5], 1285, 1280, 4 * 5),
        ("(not run in eval)", "", [], 6, 0, 0),
    ]
    floats = 192 + 128 + 128 + 256 + 5
    assert sum(summary.training_bytes.values()) == 4 * (4 * 1531 + 2 * 2 * floats)


def test_the_plot_has_three_panels(tmp_path, capsys):
    from matplotlib.image import imread

    from fastcnn.cli.summary import draw

    path = tmp_path / "out.png"
    assert main(["summary", "mobilenet_v1_x0_25", "--plot", str(path)]) == 0
    assert imread(path).shape[0] == 1200
    summary = summary_of("mobilenet_v1_x0_25")
    panels = draw(summary).axes
    bars = [sum(bar.get_height() for bar in axes.patches) for axes in panels]
    wanted = [summary.activation_bytes / MB, summary.parameters / 1e6, summary.macs / 1e6]
    assert bars == pytest.approx(wanted)
    assert main(["summary", "mobilenet_v1_x0_25", "--plot", str(tmp_path / "no" / "out.png")]) == 1
    assert "cannot be written" in capsys.readouterr().err


def test_without_matplotlib_the_command_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main(["summary", "mobilenet_v1_x0_25", "--plot", "out.png"]) == 1
    wanted = f"fastcnn summary: needs matplotlib: {sys.executable} -m pip install matplotlib\n"
    assert capsys.readouterr().err == wanted


@pytest.mark.parametrize("name", ["mobilenet_v9", "torchvision:vgg15", "nowhere:vgg16"])
def test_wrong_names_are_usage_mistakes(name, capsys):
    assert main(["summary", name]) == 2
    assert capsys.readouterr().err.startswith("fastcnn summary: ")
