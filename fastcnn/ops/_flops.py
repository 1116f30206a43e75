# SPDX-License-Identifier: Apache-2.0
"""FLOP formulas for torch.utils.flop_counter, handed over when somebody imports it.

Importing it ourselves would import Triton: a quarter of a second, and a broken Triton would take fastcnn along.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

_COUNTER = "torch.utils.flop_counter"
_formulas: dict[Any, Callable] = {}


def register_flops(op: Any, formula: Callable) -> None:
    """As ``register_flop_formula(op)(formula)``, now or as soon as the counter is imported."""
    _formulas[op] = formula
    if _COUNTER in sys.modules:
        sys.modules[_COUNTER].register_flop_formula(op)(formula)


class _HandOver(MetaPathFinder):
    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name != _COUNTER:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module

        def run_and_register(module: ModuleType) -> None:
            run(module)
            for op, formula in _formulas.items():
                module.register_flop_formula(op)(formula)

        spec.loader.exec_module = run_and_register
        return spec


if _COUNTER not in sys.modules:
    sys.meta_path.insert(0, _HandOver())
