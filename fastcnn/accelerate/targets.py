# SPDX-License-Identifier: Apache-2.0
"""What a saved program may call, and what it may call it with: everything else in a file is refused.

Only functions are here that compute tensors from tensors: none writes what it is given, reads a file, calls Python,
makes a view by raw strides or hands out memory that nobody has written. The list covers what torch.export makes of the
classification nets of torchvision and timm, of lraspp and deeplab, of SSD backbones.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from .._library import NAMESPACE, SCHEMAS

ATEN = frozenset("""
    add.Tensor add.Scalar sub.Tensor sub.Scalar rsub.Tensor rsub.Scalar mul.Tensor mul.Scalar div.Tensor div.Scalar
    div.Tensor_mode div.Scalar_mode floor_divide.default remainder.Tensor remainder.Scalar pow.Tensor_Scalar
    pow.Tensor_Tensor pow.Scalar neg.default abs.default exp.default expm1.default log.default log2.default log1p.default
    sqrt.default rsqrt.default square.default reciprocal.default sign.default floor.default ceil.default round.default
    trunc.default sin.default cos.default erf.default tanh.default sigmoid.default maximum.default minimum.default
    clamp.default clamp.Tensor clamp_min.default clamp_max.default addcmul.default addcdiv.default lerp.Scalar lerp.Tensor

    eq.Tensor eq.Scalar ne.Tensor ne.Scalar ge.Tensor ge.Scalar gt.Tensor gt.Scalar le.Tensor le.Scalar lt.Tensor lt.Scalar
    logical_and.default logical_or.default logical_not.default bitwise_and.Tensor bitwise_or.Tensor bitwise_not.default
    where.self where.ScalarOther where.ScalarSelf where.Scalar masked_fill.Scalar masked_fill.Tensor

    relu.default relu6.default hardtanh.default hardswish.default hardsigmoid.default silu.default mish.default gelu.default
    elu.default selu.default celu.default leaky_relu.default prelu.default _prelu_kernel.default softplus.default
    log_sigmoid.default hardshrink.default softshrink.default glu.default threshold.default softmax.int _softmax.default
    log_softmax.int _log_softmax.default

    conv1d.default conv1d.padding conv2d.default conv2d.padding conv3d.default conv_transpose1d.default
    conv_transpose2d.input convolution.default linear.default matmul.default mm.default bmm.default mv.default
    addmm.default baddbmm.default einsum.default scaled_dot_product_attention.default

    batch_norm.default _native_batch_norm_legit_no_training.default layer_norm.default native_layer_norm.default
    group_norm.default native_group_norm.default instance_norm.default rms_norm.default linalg_vector_norm.default
    norm.Scalar norm.ScalarOpt_dim std.correction std.dim var.correction var.dim var_mean.correction std_mean.correction

    adaptive_avg_pool1d.default adaptive_avg_pool2d.default _adaptive_avg_pool2d.default adaptive_avg_pool3d.default
    adaptive_max_pool1d.default adaptive_max_pool2d.default avg_pool1d.default avg_pool2d.default avg_pool3d.default
    max_pool1d.default max_pool2d.default max_pool2d_with_indices.default max_pool3d.default

    mean.default mean.dim sum.default sum.dim_IntList prod.dim_int amax.default amin.default max.default max.dim max.other
    min.default min.dim min.other argmax.default argmin.default cumsum.default logsumexp.default topk.default sort.default
    all.default all.dim any.default any.dim

    view.default _unsafe_view.default view_as.default reshape.default reshape_as.default flatten.using_ints unflatten.int
    squeeze.default squeeze.dim squeeze.dims unsqueeze.default permute.default transpose.int t.default mT.default
    movedim.int movedim.intlist swapaxes.default expand.default expand_as.default repeat.default tile.default
    repeat_interleave.self_int roll.default flip.default cat.default concat.default concatenate.default stack.default
    chunk.default split.Tensor split.sizes split_with_sizes.default tensor_split.sections tensor_split.indices unbind.int
    select.int slice.Tensor narrow.default select_scatter.default slice_scatter.default unfold.default im2col.default
    col2im.default pad.default constant_pad_nd.default reflection_pad1d.default reflection_pad2d.default
    replication_pad1d.default replication_pad2d.default pixel_shuffle.default pixel_unshuffle.default
    channel_shuffle.default index.Tensor index_select.default gather.default meshgrid.default meshgrid.indexing
    tril.default triu.default

    upsample_nearest1d.default upsample_nearest1d.vec upsample_nearest2d.default upsample_nearest2d.vec
    _upsample_nearest_exact2d.default _upsample_nearest_exact2d.vec upsample_bilinear2d.default upsample_bilinear2d.vec
    _upsample_bilinear2d_aa.default _upsample_bilinear2d_aa.vec upsample_bicubic2d.default upsample_bicubic2d.vec
    _upsample_bicubic2d_aa.default _upsample_bicubic2d_aa.vec

    arange.default arange.start arange.start_step linspace.default full.default full_like.default zeros.default
    zeros_like.default ones.default ones_like.default new_zeros.default new_ones.default new_full.default eye.default
    scalar_tensor.default

    to.dtype to.dtype_layout to.device to.other _to_copy.default type_as.default contiguous.default clone.default
    detach.default alias.default lift_fresh_copy.default positive.default dropout.default feature_dropout.default
    alpha_dropout.default sym_size.int sym_numel.default _assert_tensor_metadata.default
""".split())  # fmt: skip

# Of numbers, the sizes of tensors; getitem takes a piece of what split or max returned.
PYTHON: dict[str, Callable] = {
    f"operator.{name}": getattr(operator, name)
    for name in "getitem add sub mul floordiv truediv mod neg eq ne lt le gt ge".split()
} | {f"torch.{name}": getattr(torch, name) for name in "sym_int sym_float sym_max sym_min sym_not".split()}

# Arguments that must be this, or the operator draws random numbers or writes to the statistics it was given.
FIXED = {
    "aten.batch_norm.default": ("training", False),
    "aten.instance_norm.default": ("running_mean", None),
    "aten.dropout.default": ("train", False),
    "aten.feature_dropout.default": ("train", False),
    "aten.alpha_dropout.default": ("train", False),
    "aten.scaled_dot_product_attention.default": ("dropout_p", 0.0),
}

Kind = Any  # of a result: "Tensor", "number", "Tensor[]", or a tuple of these


class Refused(ValueError):
    """What is wrong with a program or file; whoever knows the file's name adds it."""


@functools.cache
def allowed() -> dict[str, Callable]:
    """Name -> function, for all that a saved program may call in this version of torch."""
    found = dict(PYTHON)
    for name in ATEN:
        packet, overload = name.split(".")
        if hasattr(torch.ops.aten, packet) and overload in getattr(torch.ops.aten, packet).overloads():
            found[f"aten.{name}"] = getattr(getattr(torch.ops.aten, packet), overload)
    # A future op that takes tensors of instructions rather than of numbers must not come in here.
    for op in SCHEMAS:
        target = getattr(getattr(torch.ops, NAMESPACE), op).default
        if not op.endswith(("_backward", "_train")) and not target._schema.is_mutable:
            found[f"{NAMESPACE}.{op}.default"] = target
    return found


@functools.cache
def _names() -> dict[Callable, str]:
    return {target: name for name, target in allowed().items()}


def name_of(target: Any) -> str:
    """Under which a program's file has ``target``.

    Raises: Refused for a function that no file may call.
    """
    name = _names().get(target)
    if name is None:
        shown = str(target) if isinstance(target, torch._ops.OpOverload) else repr(target)
        raise Refused(f"calls {shown}, wanted an operator that a saved program may call ({__name__})")
    return name


def kind_of_call(name: str, args: Sequence, kwargs: Mapping[str, Any], kinds: Mapping[fx.Node, Kind]) -> Kind:
    """What the call returns.

    Raises: Refused for arguments that do not fit its schema, naming the argument, what it got and what it wants.
    """
    target = allowed()[name]
    if name == "operator.getitem":
        return _piece(args, kwargs, kinds)
    if name in PYTHON:
        wanted = 1 if name in ("operator.neg", "torch.sym_int", "torch.sym_float", "torch.sym_not") else 2
        if len(args) != wanted or kwargs or not all(_fits(each, "number", kinds, False) for each in args):
            raise Refused(f"{name} takes {wanted} numbers, got {_show(args, kwargs)}")
        return "number"
    schema = target._schema
    given = _bind(name, schema, args, kwargs)
    for argument in schema.arguments:
        if argument.name not in given:
            continue
        value, wanted = given[argument.name], str(argument.real_type)
        one_for_all = argument.N is not None and wanted.removeprefix("Optional[").startswith("List[")
        if one_for_all and _fits(value, wanted.removeprefix("Optional[")[5:].rstrip("]"), kinds, False):
            continue
        if not _fits(value, wanted, kinds, name.startswith("aten.")):
            raise Refused(f"{name}: {argument.name} must be {wanted}, got {_show([value], {})}")
    if name in FIXED:
        argument_name, wanted_value = FIXED[name]
        if given.get(argument_name, wanted_value) != wanted_value:
            raise Refused(f"{name}: {argument_name} must be {wanted_value!r}, got {given[argument_name]!r}")
    returns = tuple(_RETURNS.get(str(each.real_type), "number") for each in schema.returns)
    return returns[0] if len(returns) == 1 else returns


_RETURNS = {"Tensor": "Tensor", "List[Tensor]": "Tensor[]"}


def _bind(name: str, schema: Any, args: Sequence, kwargs: Mapping[str, Any]) -> dict[str, Any]:
    positional = [argument.name for argument in schema.arguments if not argument.kwarg_only]
    if len(args) > len(positional):
        raise Refused(f"{name} takes at most {len(positional)} positional arguments, got {len(args)}")
    given = dict(zip(positional, args, strict=False))
    names = [argument.name for argument in schema.arguments]
    strange = [key for key in kwargs if key not in names or key in given]
    if strange:
        raise Refused(f"{name}: argument {strange[0]!r} is unknown or given twice, wanted one of {', '.join(names)}")
    given |= kwargs
    missing = [a.name for a in schema.arguments if not a.has_default_value() and a.name not in given]
    if missing:
        raise Refused(f"{name}: argument {missing[0]!r} is missing")
    return given


def _piece(args: Sequence, kwargs: Mapping[str, Any], kinds: Mapping[fx.Node, Kind]) -> Kind:
    if len(args) == 2 and not kwargs and isinstance(args[0], fx.Node) and type(args[1]) is int:
        whole = kinds[args[0]]
        if whole == "Tensor[]":
            return "Tensor"
        if isinstance(whole, tuple) and 0 <= args[1] < len(whole):
            return whole[args[1]]
    raise Refused(f"operator.getitem takes a result of several tensors and a place in it, got {_show(args, kwargs)}")


_PLAIN: dict[str, tuple[type, ...]] = {
    "int": (int,),
    "SymInt": (int,),
    "float": (float, int),
    "number": (int, float, bool),
    "bool": (bool,),
    "str": (str,),
    "Device": (torch.device,),
    "ScalarType": (torch.dtype,),
    "Layout": (torch.layout,),
    "MemoryFormat": (torch.memory_format,),
}


def _fits(value: Any, wanted: str, kinds: Mapping[fx.Node, Kind], numbers_are_tensors: bool) -> bool:
    """``numbers_are_tensors``: ATen's operators take a number where they want a tensor, exported programs use it."""
    if wanted.startswith("Optional["):
        return value is None or _fits(value, wanted[9:-1], kinds, numbers_are_tensors)
    if isinstance(value, fx.Node):
        kind = kinds[value]
        if kind == "number":
            return wanted in ("int", "SymInt", "float", "number", "bool") or (
                wanted == "Tensor" and numbers_are_tensors
            )
        return (kind, wanted) in (("Tensor", "Tensor"), ("Tensor[]", "List[Tensor]"))
    if wanted.startswith("List["):
        return isinstance(value, (list, tuple)) and all(_fits(each, wanted[5:-1], kinds, False) for each in value)
    if wanted == "Tensor":
        return numbers_are_tensors and type(value) in (int, float, bool)
    return type(value) in _PLAIN.get(wanted, ())


def _show(args: Sequence, kwargs: Mapping[str, Any]) -> str:
    shown = [repr(each) for each in args] + [f"{key}={each!r}" for key, each in kwargs.items()]
    text = ", ".join(shown) or "nothing"
    return text if len(text) <= 120 else f"{text[:120]}..."
