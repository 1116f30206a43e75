# SPDX-License-Identifier: Apache-2.0
"""Adversarial inputs 34 to 45: how people use ops - autograd, threads, workers, copies, autocast, transforms, files."""

from __future__ import annotations

import copy
import pickle
import threading

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv

import fastcnn
from fastcnn import ops
from fastcnn.nn import ChannelShuffle, ConvBNAct, DepthwiseConv2d, HardSwish, SqueezeExcite
from fastcnn.testing import assert_close_fp64
from tests.cross.adversarial import DENSE, DEPTHWISE, OF_A_MAP, POINTWISE, SE, VECTOR, Row, X, absent, right


class Small(nn.Module):
    """Every op once."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = ConvBNAct(3, 8, 3, stride=2, activation="hardswish")
        self.depthwise = DepthwiseConv2d(8, 8, 3, padding=1)
        self.shuffle, self.act, self.norm = ChannelShuffle(2), HardSwish(), nn.BatchNorm2d(8)
        self.se, self.point = SqueezeExcite(8, 4), ConvBNAct(8, 8, 1, activation="relu6")

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.se(self.act(self.shuffle(self.depthwise(x))))
        x = self.point(x, x)
        norm = self.norm
        x = ops.batch_norm_act(x, norm.running_mean, norm.running_var, norm.weight, norm.bias, x, activation="silu")
        x = ops.max_pool2d(ops.channel_shuffle_concat(x, x.relu()), 3, 1, 1)
        return ops.global_avg_pool(x).flatten(1)


def small() -> Small:
    torch.manual_seed(0)
    return Small().eval()


PICTURE = torch.linspace(-1, 1, 2 * 3 * 9 * 9).view(2, 3, 9, 9)


def gradients_of_a_subset() -> None:
    """Each tensor alone asks for its gradient: it is the one of all together."""

    def normed(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return ops.conv_bn_act(x, POINTWISE[:4], w, b, None, None, training=True, activation="silu")

    functions = {
        "depthwise": (lambda x, w, b: ops.depthwise_conv2d(x, w, b, activation="silu"), (X, DEPTHWISE, VECTOR)),
        "dense": (lambda x, w, b: ops.conv_bn_act(x, w, bias=b, activation="silu"), (X, DENSE, torch.ones(8))),
        "norm": (normed, (X, VECTOR, VECTOR)),
        "se": (lambda x, w, b: ops.se_scale(x, w, b, *SE[2:]), (X, *SE[:2])),
    }
    for name, (function, tensors) in functions.items():
        together = [t.clone().requires_grad_() for t in tensors]
        function(*together).square().sum().backward()
        for i, wanted in enumerate(together):
            alone = [t.clone().requires_grad_(i == j) for j, t in enumerate(tensors)]
            function(*alone).square().sum().backward()
            torch.testing.assert_close(alone[i].grad, wanted.grad, msg=lambda text, name=name: f"{name}: {text}")
            assert all(t.grad is None for j, t in enumerate(alone) if j != i)


def double_backward() -> None:
    x, w = torch.randn(2, 4, 5, 5).double().requires_grad_(), torch.randn(4, 1, 3, 3).double().requires_grad_()
    dense, se = (
        torch.randn(3, 4, 2, 2).double().requires_grad_(),
        [torch.randn_like(t).double().requires_grad_() for t in SE],
    )
    statistics = torch.zeros(3).double(), torch.ones(3).double()
    checks = [
        (lambda x, w: ops.depthwise_conv2d(x, w, padding=1, activation="silu"), (x, w)),
        (lambda x, w: ops.conv_bn_act(x, w, None, None, *statistics, activation="silu"), (x, dense)),
        (lambda x, w: ops.conv_bn_act(x, w, None, None, None, None, training=True, activation="sigmoid"), (x, dense)),
        (lambda x, *se: ops.se_scale(x, *se, "silu", "sigmoid"), (x, *se)),
        (lambda x: ops.batch_norm_act(x, None, None, training=True, activation="silu"), (x,)),
        (lambda x: ops.channel_shuffle(x, 2).square(), (x,)),
        (lambda x: ops.global_avg_pool(x).square(), (x,)),
        (lambda x: ops.max_pool2d(x, 2, 1).square(), (x,)),
    ]
    for function, tensors in checks:
        assert torch.autograd.gradgradcheck(function, tensors, fast_mode=True)


def odd_gradients() -> None:
    """Expanded, transposed and sliced output gradients give what contiguous ones give."""
    for function in OF_A_MAP.values():
        x = X.clone().requires_grad_()
        y = function(x)
        wide = torch.randn(*y.shape[:3], 2 * y.shape[3])
        transposed = torch.randn(y.transpose(1, 3).shape).transpose(1, 3)
        for grad in (torch.ones(()).expand_as(y), transposed, wide[..., ::2]):
            (got,) = torch.autograd.grad(y, x, grad, retain_graph=True)
            (wanted,) = torch.autograd.grad(y, x, grad.contiguous(), retain_graph=True)
            torch.testing.assert_close(got, wanted)


def threads() -> None:
    """Eight threads in the same ops at once, first calls included, with an intra-op pool below."""
    net = small()
    with torch.inference_mode():
        wanted = net(PICTURE)
    wrong: list[object] = []

    def work() -> None:
        try:
            for _ in range(20):
                with torch.inference_mode():
                    if not torch.equal(net(PICTURE), wanted):
                        wrong.append("other bits")
        except Exception as error:  # noqa: BLE001 - an error in a thread must reach the test
            wrong.append(error)

    crowd = [threading.Thread(target=work) for _ in range(8)]
    for action in (threading.Thread.start, threading.Thread.join):
        for thread in crowd:
            action(thread)
    assert not wrong, wrong[0]


class _Pictures(torch.utils.data.Dataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> Tensor:
        with torch.inference_mode():
            return small()(PICTURE)[i % 2]


def forked_workers() -> None:
    """DataLoader workers fork a process whose pool has already run."""
    big = ops.hardswish(torch.randn(2**18))
    assert big.isfinite().all()
    with torch.inference_mode():
        wanted = small()(PICTURE)
    loader = torch.utils.data.DataLoader(
        _Pictures(), batch_size=2, num_workers=2, multiprocessing_context="fork", timeout=120
    )
    for batch in loader:
        torch.testing.assert_close(batch, wanted)


def changed_parameters() -> None:
    """No cache of a folded or packed weight may outlive a change of the parameter, in place or through .data."""
    for layer, x in (
        (ConvBNAct(4, 8, 1), X),
        (ConvBNAct(4, 4, 3, groups=4), X),
        (DepthwiseConv2d(4, 4, 3), X),
        (SqueezeExcite(4, 2), X),
    ):
        layer.eval()
        with torch.inference_mode():
            before = layer(x)
        for change in (lambda p: p.data.mul_(2), lambda p: torch.nn.init.constant_(p, 0.5)):
            for parameter in layer.parameters():
                change(parameter)
            fresh = copy.deepcopy(layer)
            with torch.inference_mode():
                after = layer(x)
                assert torch.equal(after, fresh(x)) and not torch.equal(after, before)
        if isinstance(layer, ConvBNAct):
            layer[1].running_var.mul_(9)
            assert not torch.equal(layer(x), after)


def copies() -> None:
    net = small()
    wanted = net(PICTURE)
    for twin in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        assert torch.equal(twin(PICTURE), wanted) and twin.state_dict().keys() == net.state_dict().keys()


def autocast() -> None:
    """Nested and disabled regions; BN vectors and running statistics stay float32."""
    net, layer = small(), ConvBNAct(3, 8).train()
    wanted = net(PICTURE)
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(PICTURE)
        assert y.dtype is torch.bfloat16
        with torch.autocast("cpu", enabled=False):
            assert layer(PICTURE).dtype is torch.float32
            with torch.autocast("cpu", torch.float16):
                assert layer(PICTURE).dtype is torch.float16
        low = net(PICTURE)
        weights = torch.ones(4, 8), torch.ones(4), torch.ones(8, 4), torch.ones(8)
        ops.se_scale(layer(PICTURE), *weights).float().sum().backward()
    assert layer[1].running_mean.dtype is torch.float32 and layer[1].running_mean.any()
    assert layer[0].weight.grad.dtype is torch.float32
    assert_close_fp64(low.float(), wanted.double(), magnitude=float(wanted.abs().max()) * 2**17)


def inference_tensors() -> None:
    net = small()
    with torch.inference_mode():
        y, weight = net(PICTURE.clone()), DEPTHWISE.clone()
    assert y.is_inference()
    torch.testing.assert_close(net(PICTURE.clone()), y.clone())
    with pytest.raises(RuntimeError, match="Inference tensors cannot be saved for backward"):
        ops.depthwise_conv2d(X.clone().requires_grad_(), weight)


def vmapped() -> None:
    xs = torch.randn(3, 1, 4, 6, 6)
    for function in OF_A_MAP.values():
        torch.testing.assert_close(torch.vmap(function)(xs), torch.stack([function(x) for x in xs]))


def forward_mode() -> None:
    """Forward-mode differentiation: the right tangent or an error, never a silent zero."""
    for function in OF_A_MAP.values():
        try:
            _, tangent = torch.func.jvp(function, (X,), (torch.ones_like(X),))
        except (RuntimeError, NotImplementedError):
            continue
        step = 1e-3
        wanted = (function(X + step) - function(X - step)) / (2 * step)
        torch.testing.assert_close(tangent, wanted, rtol=1e-2, atol=1e-2)


def functional_gradient() -> None:
    """torch.func.grad: the right gradient, or torch's error for ops of torch.library."""
    for function in OF_A_MAP.values():
        leaf = X.clone().requires_grad_()
        function(leaf).sum().backward()
        try:
            got = torch.func.grad(lambda t, f=function: f(t).sum())(X)
        except RuntimeError as error:
            assert "functorch" in str(error)
        else:
            torch.testing.assert_close(got, leaf.grad)


class _Tagged(torch.Tensor):
    pass


def subclasses() -> None:
    x = X.clone().as_subclass(_Tagged)
    for function in OF_A_MAP.values():
        assert torch.equal(function(x).as_subclass(torch.Tensor), function(X))
    assert ops.hardswish(nn.Parameter(X)).requires_grad


def symbolic_shapes() -> None:
    """Meta, fake and a batch of unknown size."""
    net = small()
    assert copy.deepcopy(net).to("meta")(PICTURE.to("meta")).shape == (2, 16)
    with FakeTensorMode(shape_env=ShapeEnv()) as mode:
        fake = mode.from_tensor(PICTURE)
        layer = ConvBNAct(3, 8).eval()
        assert layer(fake).shape == (2, 8, 9, 9)
        size = mode.shape_env.create_unbacked_symint()
        torch._check(size >= 2)
        y = ops.hardswish(torch.empty(size, 4, 6, 6))
        assert y.shape[0] is size or y.shape[0] == size


def poisoned_file(folder) -> None:
    """A pickle that runs code; tests/models/test_weights.py has the rest of 45."""

    class Payload:
        def __reduce__(self):
            return (open, (str(folder / "ran"), "w"))

    torch.save({"state_dict": Payload()}, folder / "evil.pth")
    with pytest.raises(ValueError, match="refused"):
        fastcnn.create_model("mobilenet_v2", weights=str(folder / "evil.pth"))
    assert not (folder / "ran").exists()


GPU = "needs a CUDA device; the CUDA tests bring it"
ROWS: list[Row] = [
    right(34, "requires_grad on each tensor alone", gradients_of_a_subset),
    right(34, "double backward", double_backward),
    right(35, "gradients expanded, transposed, sliced", odd_gradients),
    absent(36, "non-default stream", GPU),
    absent(37, "cuda:1 with current device cuda:0", GPU),
    absent(38, "CUDA graph capture", GPU),
    right(39, "DataLoader workers after the pool has run", forked_workers),
    right(40, "eight threads in the same ops", threads),
    right(41, "parameters changed after the first eval call", changed_parameters),
    right(42, "deepcopy and pickle", copies),
    right(43, "autocast nested and disabled", autocast),
    right(44, "inference_mode", inference_tensors),
    right(44, "vmap", vmapped),
    right(44, "forward-mode differentiation", forward_mode),
    right(44, "torch.func.grad", functional_gradient),
    right(44, "tensor subclass", subclasses),
    right(44, "meta, FakeTensor, unbacked sizes", symbolic_shapes),
    right(45, "model file with pickled code", poisoned_file),
]
