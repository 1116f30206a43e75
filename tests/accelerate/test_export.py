# SPDX-License-Identifier: Apache-2.0
"""torch.export and AOTInductor with our ops in the graph, and what a process needs that loads the result."""

import contextlib
import io
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import fastcnn
from fastcnn._library import CPU
from fastcnn.reference import calibrate

needs_the_library = pytest.mark.skipif(not CPU.loaded, reason="the compiled CPU library is not loaded")
BATCHES = (1, 2, 5)

# Argument: what to do first, how to load the net. It compares with what the exporting process computed.
CONSUMER = """
import sys, torch
exec(sys.argv[1])
net = {load}
for x, y in torch.load("cases.pt"):
    {check}
assert not [name for name in sys.modules if name.startswith("fastcnn")], "a Python page of fastcnn was imported"
print("equal")
"""
LOAD_PT2 = CONSUMER.format(load="torch.export.load('net.pt2').module()", check="assert torch.equal(net(x), y)")
LOAD_PACKAGE = CONSUMER.format(
    load="torch._inductor.aoti_load_package('net.pt2')", check="torch.testing.assert_close(net(x), y)"
)
LIBRARY = f"torch.ops.load_library({str(CPU.path)!r})"


class Net(nn.Module):
    """Strided, depthwise, squeeze-and-excitation, residual, shuffle, pools, and operators of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = fastcnn.nn.ConvBNAct(3, 8, 3, stride=2, padding=1, activation="hardswish")
        self.depthwise = fastcnn.nn.DepthwiseConv2d(8, 8, 3, padding=1)
        self.gate = fastcnn.nn.SqueezeExcite(8, 4)
        self.shuffle = fastcnn.nn.ChannelShuffle(2)
        self.pool = fastcnn.nn.MaxPool2d(3, 2, 1)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.pool(self.shuffle(x + self.gate(self.depthwise(x))))
        return self.head(fastcnn.ops.global_avg_pool(x).flatten(1)).softmax(1)


def exported(folder: Path) -> torch.export.ExportedProgram:
    """With a dynamic batch; ``cases.pt`` in ``folder`` holds inputs of several batch sizes and their results."""
    net = calibrate(Net(), [3, 17, 15])
    with torch.no_grad():
        pictures = [torch.randn(n, 3, 17, 15) for n in BATCHES]
        torch.save([(x, net(x)) for x in pictures], folder / "cases.pt")
        return torch.export.export(net, (pictures[1],), dynamic_shapes=({0: torch.export.Dim("batch")},))


def consume(folder: Path, code: str, first: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code, first], cwd=folder, capture_output=True, text=True, check=False)


def test_save_and_load(tmp_path):
    torch.export.save(exported(tmp_path), tmp_path / "net.pt2")
    net = torch.export.load(tmp_path / "net.pt2").module()
    for x, y in torch.load(tmp_path / "cases.pt"):
        assert torch.equal(net(x), y)


@needs_the_library
def test_a_process_with_nothing_but_the_library_runs_a_pt2(tmp_path):
    torch.export.save(exported(tmp_path), tmp_path / "net.pt2")
    done = consume(tmp_path, LOAD_PT2, LIBRARY)
    assert done.stdout == "equal\n", done.stderr[-3000:]
    without = consume(tmp_path, LOAD_PT2, "pass")
    assert without.returncode != 0
    message = r"failed to resolve torch\.ops\.fastcnn\.\w+\.default to an operator"
    assert re.search(message, without.stderr), without.stderr[-3000:]


@needs_the_library
@pytest.mark.long
def test_a_process_with_nothing_but_the_library_runs_an_aotinductor_package(tmp_path, monkeypatch):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    program = exported(tmp_path)
    with torch.no_grad():
        torch._inductor.aoti_compile_and_package(program, package_path=str(tmp_path / "net.pt2"))
    net = torch._inductor.aoti_load_package(str(tmp_path / "net.pt2"))
    for x, y in torch.load(tmp_path / "cases.pt"):
        torch.testing.assert_close(net(x), y)
    done = consume(tmp_path, LOAD_PACKAGE, LIBRARY)
    assert done.stdout == "equal\n", done.stderr[-3000:]
    without = consume(tmp_path, LOAD_PACKAGE, "pass")
    assert re.search("RuntimeError: Could not find schema for fastcnn::", without.stderr), without.stderr[-3000:]


class Payload:
    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self) -> tuple:
        return open, (self.marker, "w")


def test_torch_export_load_runs_what_a_doctored_file_holds(tmp_path):
    """A limitation of torch that docs/EXPORT.md warns of; when this fails, the warning can go."""
    torch.export.save(exported(tmp_path), tmp_path / "net.pt2")
    evil = io.BytesIO()
    torch.save(Payload(tmp_path / "marker"), evil)
    with zipfile.ZipFile(tmp_path / "net.pt2") as good, zipfile.ZipFile(tmp_path / "evil.pt2", "w") as doctored:
        names = [name for name in good.namelist() if "sample_inputs" in name]
        assert len(names) == 1
        for name in good.namelist():
            doctored.writestr(name, evil.getvalue() if name in names else good.read(name))
    with contextlib.suppress(Exception):  # the example inputs are none any more
        torch.export.load(tmp_path / "evil.pt2")
    assert (tmp_path / "marker").exists()


PAGE = (Path(__file__).resolve().parents[2] / "docs/EXPORT.md").read_text(encoding="utf-8")
SECTIONS = {
    section.split(":", 1)[0].strip("` "): re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    for section in PAGE.split("\n## ")[1:]
}


def test_the_page_has_the_three_ways():
    assert {name: len(blocks) for name, blocks in SECTIONS.items()} == {".pt2": 2, "AOTInductor": 2, "ONNX": 1}


@needs_the_library
@pytest.mark.parametrize("section", [".pt2", pytest.param("AOTInductor", marks=pytest.mark.long), "ONNX"])
def test_the_examples_of_the_page(section, tmp_path, monkeypatch):
    """Each block in a process of its own; the last one prints the shape of the result."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    for block in SECTIONS[section]:
        done = subprocess.run([sys.executable, "-c", block], cwd=tmp_path, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr[-3000:]
    assert re.search(r"\b5, 1000\b", done.stdout)
