# SPDX-License-Identifier: Apache-2.0
"""Plans: what the CPU runs in one call. ``csrc/cpu/plan`` executes them."""

from .builder import Plan, StepNote
from .op import AVAILABLE
from .planned import Planned, can_bf16, lanes, plan
from .sizes import at_sizes
from .weights import Blob, BlobFull

__all__ = ["AVAILABLE", "Blob", "BlobFull", "Plan", "Planned", "StepNote", "at_sizes", "can_bf16", "lanes", "plan"]
