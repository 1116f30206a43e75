# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the captured program, one pattern a file, in the order in which they run."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping

from torch import fx

from ..program import Notes, sweep
from .channel_gather import channel_gather
from .channel_shuffle import channel_shuffle
from .conv_activation import conv_activation
from .depthwise import depthwise
from .depthwise_se_gate import depthwise_se_gate
from .fold_batch_norm import fold_batch_norm
from .fold_scale import fold_scale
from .global_pool import global_pool
from .normalise import normalise
from .operand_gate import operand_gate
from .operand_norm import operand_norm
from .same_padding import same_padding
from .shuffle_order import shuffle_order
from .sibling_convs import sibling_convs
from .slices import slices
from .squeeze_excite import squeeze_excite
from .through_concat import through_concat
from .written_out_activations import written_out_activations

Rewrite = Callable[[fx.GraphModule, Notes], int]

# Each leaves a correct program, so each can be switched off; `normalise`, which they all need, cannot.
REWRITES: dict[str, Rewrite] = {
    rewrite.__name__: rewrite
    for rewrite in (
        same_padding,
        through_concat,
        fold_batch_norm,
        written_out_activations,
        global_pool,
        fold_scale,
        conv_activation,
        squeeze_excite,
        channel_shuffle,
        slices,
        channel_gather,
        shuffle_order,
        sibling_convs,
        operand_norm,
        operand_gate,
        depthwise,
        depthwise_se_gate,
    )
}

PLAN = "plan"  # no rewrite: whether the CPU runs what it can in plans

_OFF_ON_CPU = {
    "channel_gather",  # moves fewer bytes, and takes longer: aten.cat is slow over narrow slices
    "depthwise_se_gate",  # its convolution leaves no sums there
}


def check_mapping(mapping: Mapping[str, bool] | None, device: str = "cpu") -> dict[str, bool]:
    """``mapping`` with every rewrite and ``PLAN`` in it; where it does not say, what is best on ``device``.

    Raises: TypeError for what maps no names to bools; ValueError for an unknown name, with the nearest ones.
    """
    given = {} if mapping is None else mapping
    if not isinstance(given, Mapping) or not all(isinstance(on, bool) for on in given.values()):
        raise TypeError(f"accelerate: mapping must be a dict of rewrite names to True or False, got {mapping!r}")
    known = [*REWRITES, PLAN]
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, n=3) or known
            raise ValueError(f"accelerate: mapping must name rewrites, got {name!r}; nearest: {', '.join(near)}")
    return {name: given.get(name, device != "cpu" or name not in _OFF_ON_CPU) for name in known}


def rewrite(program: fx.GraphModule, mapping: Mapping[str, bool] | None = None, device: str = "cpu") -> dict[str, int]:
    """Run them on ``program``, in place, those that pay on ``device`` and that ``mapping`` does not switch.

    Returns: how often each pattern was replaced.
    """
    notes = Notes()
    normalise(program, notes)
    on = check_mapping(mapping, device)
    counts = {name: each(program, notes) if on[name] else 0 for name, each in REWRITES.items()}
    sweep(program)
    return counts
