# SPDX-License-Identifier: Apache-2.0
"""Models that accelerate() takes though they are not what it is made for: equal results, and the report says what is left."""

from collections import namedtuple
from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_structure

import fastcnn
from tests.accelerate.random_builder import perturb
from tests.accelerate.random_check import run

Pair = namedtuple("Pair", "first second")


class Forward(nn.Module):
    """``forward`` is the function given, called with the module; its parts are what else is given."""

    def __init__(self, function: Callable, **parts: Any) -> None:
        super().__init__()
        self.function = function
        for name, part in parts.items():
            self.register_buffer(name, part) if isinstance(part, Tensor) else setattr(self, name, part)
        perturb(self, 0)
        self.eval()

    def forward(self, *inputs: Tensor) -> Any:
        return self.function(self, *inputs)


def image(n: int = 2, c: int = 3, size: int = 8) -> Tensor:
    return torch.randn(n, c, size, size)


def assert_same(fast: nn.Module, model: nn.Module, *inputs: Tensor, relative: float = 1e-5) -> None:
    got, wanted = run(fast, inputs), run(model, inputs)
    assert tree_structure(got) == tree_structure(wanted)
    for ours, theirs in zip(tree_leaves(got), tree_leaves(wanted), strict=True):
        if not isinstance(theirs, Tensor):
            assert type(ours) is type(theirs)
            assert ours == theirs
            continue
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        size = theirs.double().nan_to_num().abs().max().item() if theirs.numel() else 0.0
        torch.testing.assert_close(ours, theirs, rtol=0, atol=relative * size, equal_nan=True)


def conv(c: int = 3, out: int = 4) -> nn.Module:
    return nn.Conv2d(c, out, 3, padding=1)


def cut(model: Any, x: Tensor) -> Tensor:
    return model.conv(x)[:, :2].relu()


@pytest.mark.parametrize("model", [
    nn.ReLU(), nn.Sequential(), nn.Identity(), nn.MaxPool2d(2), nn.Flatten(), nn.ChannelShuffle(3), nn.BatchNorm2d(3, affine=False),
    Forward(lambda m, x: x), Forward(lambda m, x: [x, x]), Forward(lambda m, x: x + 1), Forward(lambda m, x: x.amax()),
    Forward(lambda m, x: x.argmax(1)), Forward(lambda m, x: x > 0),
], ids=lambda model: type(model).__name__)  # fmt: skip
def test_models_without_parameters(model: nn.Module) -> None:
    fast = fastcnn.accelerate(model.eval(), image())
    for batch in (1, 2, 5):
        assert_same(fast, model, image(batch))


@pytest.mark.parametrize("result", [
    lambda m, x: {"y": m.conv(x), "n": 3, "none": None, "text": "logits", "yes": True, "half": 0.5},
    lambda m, x: (m.conv(x), None), lambda m, x: Pair(m.conv(x), 1), lambda m, x: None, lambda m, x: 7,
    lambda m, x: (m.conv(x), m.conv.weight, m.conv.bias), lambda m, x: (m.conv(x), x), lambda m, x: m.conv(x).shape[1],
], ids=["dict", "None", "namedtuple", "nothing", "int", "weights", "input", "size"])  # fmt: skip
def test_results_that_are_no_tensors(result: Callable) -> None:
    model = Forward(result, conv=conv())
    assert_same(fastcnn.accelerate(model, image()), model, image())


def test_a_result_that_is_the_batch_size() -> None:
    model = Forward(lambda m, x: (m.conv(x), x.shape[0]), conv=conv())
    fast = fastcnn.accelerate(model, image(2))
    for batch in (1, 2, 5):
        assert_same(fast, model, image(batch))


@pytest.mark.parametrize("channels", [1, 3])
def test_an_image_without_batch_dimension(channels: int) -> None:
    model = Forward(cut, conv=conv(channels))
    x = torch.randn(channels, 8, 9)
    model.function = lambda m, x: m.conv(x).relu()
    assert_same(fastcnn.accelerate(model, x), model, x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_dtypes_of_the_model(dtype: torch.dtype) -> None:
    model = Forward(lambda m, x: m.bn(m.conv(x)).relu() + 1, conv=conv(), bn=nn.BatchNorm2d(4)).to(dtype)
    x = image().to(dtype)
    exact = run(deepcopy(model).double(), (x.double(),))
    own = (run(model, (x,)).double() - exact).abs().max()
    got = run(fastcnn.accelerate(model, x), (x,))
    assert got.dtype == dtype
    assert (got.double() - exact).abs().max() <= max(5 * own, 1e-12)


def test_pictures_of_integers() -> None:
    model = Forward(lambda m, x: m.conv(x.float() / 255), conv=conv())
    x = torch.randint(0, 256, (2, 3, 8, 8), dtype=torch.uint8)
    assert_same(fastcnn.accelerate(model, x), model, x)


def test_indices_beside_the_image() -> None:
    model = Forward(lambda m, x, i: m.conv(x) + m.table(i)[:, :, None, None], conv=conv(), table=nn.Embedding(10, 4))
    fast = fastcnn.accelerate(model, (image(), torch.tensor([3, 9])))
    assert_same(fast, model, image(), torch.tensor([0, 7]))
    assert any(
        "fixes its batch size" in note for note in fast.report.notes
    )  # of the indices; nothing says they are a batch


@pytest.mark.parametrize(("first", "second"), [(3, 1), (3, 4), (1, 1), (1, 3)])
def test_inputs_of_different_batches(first: int, second: int) -> None:
    model = Forward(lambda m, x, y: (m.conv(x) + y[:1], m.conv(x) + y.mean(0)), conv=conv())
    inputs = (image(first), torch.randn(second, 4, 1, 1))
    assert_same(fastcnn.accelerate(model, inputs), model, *inputs)


def test_an_input_that_nothing_reads() -> None:
    model = Forward(lambda m, x, y: m.conv(x), conv=conv())
    assert_same(fastcnn.accelerate(model, (image(), image())), model, image(5), image(5))


def test_an_operator_that_nobody_knows() -> None:
    @torch.library.custom_op("random_nets::halve", mutates_args=())
    def halve(x: Tensor) -> Tensor:
        return x / 2

    halve.register_fake(lambda x: torch.empty_like(x))
    model = Forward(lambda m, x: m.bn(halve(m.conv(x))).relu(), conv=conv(), bn=nn.BatchNorm2d(4))
    fast = fastcnn.accelerate(model, image())
    assert_same(fast, model, image(5))
    left = {each.operator: each.reason for each in fast.report.left}
    assert left["random_nets.halve"]
    assert "random_nets" in left["fastcnn.batch_norm_act"]


def test_weights_shared_by_layers() -> None:
    model = Forward(lambda m, x: m.bn(m.b(m.a(x))) + m.a(x), a=conv(3, 3), b=conv(3, 3), bn=nn.BatchNorm2d(3))
    model.b.weight = model.a.weight
    before = deepcopy(model.state_dict())
    assert_same(fastcnn.accelerate(model, image()), model, image(5))
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


def test_batch_norm_on_the_statistics_of_the_batch() -> None:
    model = Forward(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4, track_running_stats=False))
    fast = fastcnn.accelerate(model, image())
    assert_same(fast, model, image(5))
    (left,) = [each for each in fast.report.left if "batch_norm" in each.operator]
    assert "no running statistics" in left.reason


def test_a_negative_variance_gives_the_same_nan() -> None:
    model = Forward(lambda m, x: m.bn(m.conv(x)).relu(), conv=conv(), bn=nn.BatchNorm2d(4))
    model.bn.running_var[1] = -1.0
    assert run(model, (image(),)).isnan().any()
    assert_same(fastcnn.accelerate(model, image()), model, image())


def test_a_model_that_writes_to_its_buffer() -> None:
    """The result cannot: the original is not run on for it, and the report says so."""
    model = Forward(lambda m, x: m.conv(x) + m.calls.add_(1), conv=conv(), calls=torch.zeros(1))
    before = model.calls.clone()
    fast = fastcnn.accelerate(model, image(), strict=False)
    assert torch.equal(model.calls, before)
    assert not fast.report.accelerated or any("calls" in note for note in fast.report.notes)


def test_hooks_and_reparametrised_weights() -> None:
    model = Forward(lambda m, x: m.bn(m.conv(x)), conv=torch.nn.utils.parametrizations.weight_norm(conv()),
                    bn=nn.BatchNorm2d(4))  # fmt: skip
    model.conv.register_forward_hook(lambda module, inputs, output: output * 2)
    assert_same(fastcnn.accelerate(model, image()), model, image(5))


def test_default_arguments_and_channels_last() -> None:
    class WithDefault(nn.Module):
        def forward(self, x: Tensor, scale: float = 2.0, flip: bool = False) -> Tensor:
            return F.relu(x.flip(3) if flip else x) * scale

    x = image().to(memory_format=torch.channels_last)
    assert_same(fastcnn.accelerate(WithDefault().eval(), x), WithDefault().eval(), image(5))


@pytest.mark.parametrize("context", [torch.inference_mode, torch.enable_grad, torch.no_grad])
def test_called_within(context: Callable) -> None:
    model = Forward(lambda m, x: m.bn(m.conv(x)), conv=conv(), bn=nn.BatchNorm2d(4))
    with context():
        fast = fastcnn.accelerate(model, image())
    assert_same(fast, model, image(5))
    assert not fast(image()).isnan().any()


def test_a_model_that_writes_to_its_input() -> None:
    model = Forward(lambda m, x: m.conv(x.relu_()) + x, conv=conv(3, 3))
    x = image()
    before = x.clone()
    fast = fastcnn.accelerate(model, x)
    assert_same(fast, model, image(5))
    fast(x)
    assert torch.equal(x, before)
    assert "the original writes to input 0, which the result does not" in fast.report.notes
