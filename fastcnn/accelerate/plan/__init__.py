# SPDX-License-Identifier: Apache-2.0
"""Plans: what the CPU runs in one call. ``csrc/cpu/plan`` executes them."""

from .planned import Planned, plan

__all__ = ["Planned", "plan"]
