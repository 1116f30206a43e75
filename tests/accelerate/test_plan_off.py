# SPDX-License-Identifier: Apache-2.0
"""Where plans do not run: switched off, watched, differentiated, without a library; and what changes under them."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import fastcnn
from fastcnn import _library
from fastcnn.accelerate.plan import AVAILABLE
from fastcnn.reference import relative_error
from tests.accelerate.plan_nets import accelerated

pytestmark = pytest.mark.skipif(not AVAILABLE, reason="no compiled CPU library")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def x():
    return torch.randn(2, 3, 24, 24)


@pytest.fixture
def refused(monkeypatch):
    """Any call that would use a plan fails."""

    def no(*args):
        raise AssertionError("a plan was asked for")

    monkeypatch.setattr(fastcnn.accelerate.Accelerated, "_current", no)


def test_switched_off_by_mapping_and_stays_so(x, tmp_path):
    original, fast = accelerated(mapping={"plan": False})
    assert fast.report.plans.reason == 'switched off by mapping={"plan": False}'
    fast.save(tmp_path / "net")
    for found in (fast, fastcnn.load(tmp_path / "net"), copy.deepcopy(fast)):
        assert not any("plan" in node.meta for node in found.runs((x,)).graph.nodes)
        assert found.report.plans.count == 0
        torch.testing.assert_close(found(x), original(x))


def test_a_wrong_name_is_refused():
    with pytest.raises(ValueError, match="mapping must name rewrites, got 'plans'; nearest: plan"):
        accelerated(mapping={"plans": False})


def test_use_backend_runs_the_operators(x, refused):
    original, fast = original_and(x)
    with fastcnn.use_backend("reference"):
        torch.testing.assert_close(fast(x), original(x))


def original_and(x):
    """Made before plans are refused: from a file, so that nothing is packed."""
    return ORIGINAL, copy.deepcopy(FAST)


ORIGINAL, FAST = accelerated() if AVAILABLE else (None, None)


def test_autocast_runs_the_operators(x, refused):
    _, fast = original_and(x)
    with torch.autocast("cpu", torch.bfloat16):
        assert fast(x).shape == (2, 5)


def test_gradients_run_the_operators(x, refused):
    _, fast = original_and(x)
    with pytest.raises(RuntimeError, match="inference"):
        fast(x.requires_grad_()).sum().backward()


def test_functorch_runs_the_operators(x, refused):
    original, fast = original_and(x)
    torch.testing.assert_close(torch.func.functionalize(fast)(x), original(x))


def test_compile_and_export_take_the_operators(x, refused):
    original, fast = original_and(x)
    exported = torch.export.export(fast, (x,))
    assert not any("run_plan" in str(node.target) for node in exported.graph.nodes)
    torch.testing.assert_close(exported.module()(x), original(x))
    torch.testing.assert_close(torch.compile(fast, backend="eager")(x), original(x))


def test_without_a_library_the_operators_run(tmp_path):
    code = (
        "import torch, fastcnn\n"
        "from fastcnn.accelerate.plan import AVAILABLE\n"
        "from tests.accelerate.plan_nets import accelerated\n"
        "original, fast = accelerated()\n"
        "x = torch.randn(3, 3, 24, 24)\n"
        "torch.testing.assert_close(fast(x), original(x))\n"
        "assert not AVAILABLE and fast.report.plans.reason == 'no compiled CPU library', fast.report.plans\n"
    )
    run(code, FASTCNN_LIBRARY_FOLDER=str(tmp_path))


def test_another_instruction_set_packs_for_itself(x, tmp_path):
    if _library.isa_active() == "plain":
        pytest.skip("this process has the smallest vectors already")
    _, fast = accelerated()
    fast.save(tmp_path / "net")
    torch.save((x, fast(x)), tmp_path / "calls")
    code = (
        "import sys, torch, fastcnn\n"
        "from fastcnn.reference import relative_error\n"
        "fast = fastcnn.load(sys.argv[1] + '/net')\n"
        "x, wanted = torch.load(sys.argv[1] + '/calls')\n"
        "assert relative_error(fast(x), wanted.double()) < 1e-5\n"
        "assert fast.report.plans.count == 1 and fast._packed._blob.lanes == 4\n"
    )
    run(code, str(tmp_path), FASTCNN_CPU_ISA="plain")


def test_load_and_first_call_import_no_compiler(tmp_path):
    """torch's takes half a second to import; MobileNetV2's load and first call have as much in all."""
    _, fast = accelerated()
    fast.save(tmp_path / "net")
    code = (
        "import sys, torch, fastcnn\n"
        "fast = fastcnn.load(sys.argv[1])\n"
        "with torch.inference_mode():\n"
        "    fast(torch.randn(1, 3, 24, 24))\n"
        "assert fast.report.plans.count == 1 and 'torch._dynamo' not in sys.modules\n"
    )
    run(code, str(tmp_path / "net"))


def run(code: str, *arguments: str, **environment: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if name != "FASTCNN_REQUIRE_EXT"}
    done = subprocess.run([sys.executable, "-c", code, *arguments], env={**inherited, **environment}, cwd=ROOT,
                          capture_output=True, text=True, timeout=300, check=False)  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]


def test_the_file_holds_the_weights_unpacked_and_once(x, tmp_path):
    _, fast = accelerated()
    fast.save(tmp_path / "before")
    fast(x)
    fast.save(tmp_path / "after")
    before, after = ((tmp_path / name).read_bytes() for name in ("before", "after"))
    assert before == after
    stored = fastcnn.load(tmp_path / "after").state_dict()
    assert stored.keys() == fast.state_dict().keys()
    assert all(torch.equal(stored[name], value) for name, value in fast.state_dict().items())


@pytest.mark.parametrize("change", ["in place", "load_state_dict", "to", "copy", "pickle"])
def test_weights_that_change_are_packed_again(x, change):
    original, fast = accelerated()
    fast(x)
    with torch.no_grad():
        original.head.weight.mul_(2.0), original.expand[0].weight.mul_(0.5)
    state = fast.state_dict()
    factors = {"program.head.weight": 2.0, "program.expand.0.weight": 0.5}
    doubled = {name: value * factors.get(name, 1.0) for name, value in state.items()}
    assert factors.keys() <= state.keys()
    if change == "in place":
        with torch.no_grad():
            for name, value in doubled.items():
                fast.get_parameter(name).copy_(value)
    elif change == "to":
        fast.double().load_state_dict(doubled)
        fast.float()
    else:
        fast.load_state_dict(doubled)
    found = {"copy": copy.deepcopy, "pickle": lambda m: pickle.loads(pickle.dumps(m))}.get(change, lambda m: m)(fast)
    wanted = original.double()(x.double()).detach()
    assert relative_error(found(x), wanted) < 1e-5
    assert found.report.plans.count == 1
