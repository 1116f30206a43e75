# SPDX-License-Identifier: Apache-2.0
"""What each Triton kernel asks for against the bytes of its header, counted in the interpreter: a model."""

import math

import torch

from fastcnn import _triton

from .interpreter import needs_triton, run_checks
from .traffic import Launch, counted

HALF = torch.float16
FORMATS = {True: torch.channels_last, False: torch.contiguous_format}


def _map(N: int, C: int, H: int, W: int, last: bool) -> torch.Tensor:
    return torch.randn(N, C, H, W).to(HALF).contiguous(memory_format=FORMATS[last])


def _launch(op: str, *args, **kwargs):
    return _triton.launcher(op)(*args, **kwargs)


def _nbytes(launch: Launch, name: str) -> int:
    return launch.arguments[name].nbytes


def _once(launch: Launch, reads: str, writes: str) -> None:
    """Each named argument is moved whole and no byte of it twice."""
    for kind, names in (("loaded", reads), ("stored", writes)):
        for name in names.split():
            whole, buffer = _nbytes(launch, name), launch[name]
            found = getattr(buffer, kind), getattr(buffer, f"{kind}_once")
            assert found == (whole, whole), f"{launch.kernel}: {name}: {kind} {found} of {whole} bytes"


def _at_most(launch: Launch, name: str, factor: float, what: str = "loaded") -> None:
    whole, got = _nbytes(launch, name), getattr(launch[name], what)
    assert launch[name].loaded_once <= whole, f"{launch.kernel}: {name}"
    assert 0 < got <= factor * whole, f"{launch.kernel}: {name}: {what} {got / whole:.2f}x, at most {factor:.2f}x"


def _vectors_once_a_tile(launch: Launch, names: str) -> None:
    a = launch.arguments
    for name in names.split():
        most = math.prod(launch.grid) * (a["LANES"] if a["LAST"] else a["ROWS"]) * a[name].itemsize
        assert 0 < launch[name].loaded <= most, f"{launch.kernel}: {name}"


def check_activations():
    for last in FORMATS:
        x = _map(2, 24, 9, 7, last)
        with counted() as traffic:
            _launch("activation", x, "silu")
            _launch("activation_backward", x.clone(), x, "silu")
        _once(traffic["activation_forward_kernel"], "x", "y")
        _once(traffic["activation_backward_kernel"], "grad x", "y")


def check_batch_norm():
    for last in FORMATS:
        x, residual, grad = (_map(3, 40, 12, 10, last) for _ in range(3))
        vectors = [torch.rand(40) + 0.5 for _ in range(4)]
        with counted() as traffic:
            _launch("batch_norm_act", x, *vectors, residual, 1e-3, "relu")
        apply = traffic["batch_norm_act_apply_kernel"]
        _once(apply, "x residual", "y")
        _vectors_once_a_tile(apply, "mean spread weight bias")
        with counted() as traffic:
            _launch("batch_norm_act_train", x, *vectors, residual, 0.1, 1e-3, "relu")
        _once(traffic["batch_norm_act_statistics_kernel"], "x", "means squares")
        _once(
            traffic["batch_norm_act_merge_kernel"],
            "means squares running_mean running_var",
            "mean invstd new_mean new_var",
        )
        _once(traffic["batch_norm_act_apply_kernel"], "x residual", "y")
        with counted() as traffic:
            _launch("batch_norm_act_backward", grad, x, *vectors, residual, True, "silu", [True] * 4)
        sums = traffic["batch_norm_act_backward_sums_kernel"]
        _once(sums, "grad x residual", "parts")
        _once(traffic["sum_parts_kernel"], "parts", "y")
        _once(traffic["batch_norm_act_backward_kernel"], "grad x residual", "grad_x grad_residual")


def check_sums():
    from fastcnn.triton_kernels._reduce import channel_sums

    for last in FORMATS:
        x = _map(2, 24, 33, 17, last)
        with counted() as traffic:
            channel_sums(x, last, torch.empty(24))
        _once(traffic["channel_sums_kernel"], "x", "parts")
        _once(traffic["sum_parts_kernel"], "parts", "y")
        with counted() as traffic:
            y = _launch("global_avg_pool", x)
            _launch("global_avg_pool_backward", y, x)
        _once(traffic["global_avg_pool_sums_kernel"], "x", "parts")
        _once(traffic["sum_parts_kernel"], "parts", "y")
        backward = traffic["global_avg_pool_backward_kernel"]
        _once(backward, "", "y")
        _at_most(backward, "grad", 33 * 17)
        assert backward["grad"].left_l1 <= 0.2 * y.nbytes * 33 * 17


def check_squeeze_and_excitation():
    N, C, R = 2, 72, 40
    for last in FORMATS:
        x, grad, pooled = _map(N, C, 15, 14, last), _map(N, C, 15, 14, last), torch.rand(N, C)
        vectors = (torch.rand(R, C), torch.rand(R), torch.rand(C, R), torch.rand(C))
        with counted() as traffic:
            _launch("se_scale", x, *vectors, "relu", "sigmoid")
        gate = traffic["se_scale_gate_kernel"]
        _once(gate, "", "z1 scale")
        for name, factor in {"w1": N, "b1": N, "w2": N, "b2": N, "pooled": math.ceil(R / 32)}.items():
            assert gate[name].loaded == factor * _nbytes(gate, name), name
        assert gate["hidden"].loaded == math.ceil(C / 32) * gate["hidden"].stored == math.ceil(C / 32) * N * R * 4
        scale = traffic["se_scale_kernel"]
        _once(scale, "x", "y")
        assert scale["scale"].loaded == 4 * x.numel() and scale["scale"].left_l1 <= 0.2 * x.nbytes
        with counted() as traffic:
            _launch("se_scale_backward", grad, x, pooled, *vectors, "relu", "sigmoid")
        _once(traffic["global_avg_pool_sums_kernel"], "x factor", "parts")
        gate = traffic["se_scale_gate_backward_kernel"]
        _once(gate, "grad_scale z1 z2", "grad_z1 grad_z2 grad_pooled")
        for name, factor in {"w1": N, "w2": N, "grad_z2": math.ceil(R / 32), "grad_z1": math.ceil(C / 32)}.items():
            assert gate[name].loaded == factor * _nbytes(gate, name), name
        for launch, (O, I) in zip(
            [each for each in traffic if each.kernel == "se_scale_weight_kernel"], ((R, C), (C, R)), strict=True
        ):
            _once(launch, "", "grad_weight grad_bias")
            assert launch["grad_z"].loaded == math.ceil(I / 64) * N * O * 4
            assert launch["x"].loaded == math.ceil(O / 32) * N * I * 4
        _once(traffic["se_scale_kernel"], "x", "y")


def check_shuffle():
    for last in FORMATS:
        for C, groups in ((48, 2), (48, 24), (48, 3)):
            with counted() as traffic:
                _launch("channel_shuffle", _map(2, C, 6, 5, last), groups)
            (launch,) = traffic
            _once(launch, "", "y")
            x = launch["x1" if "x1" in launch.arguments else "x"]  # x1 and x2 may be halves of one map
            assert x.loaded == x.loaded_once == _nbytes(launch, "y"), launch.kernel
        with counted() as traffic:
            wide = _map(2, 96, 6, 5, last)
            _launch("channel_shuffle_concat", wide[:, 24:48], wide[:, 72:])
        (launch,) = traffic
        _once(launch, "", "y")
        assert launch["x1"].loaded == launch["x1"].loaded_once == wide.nbytes // 2  # both halves, where they lie


@needs_triton
def test_in_the_interpreter():
    run_checks(__name__)
