# SPDX-License-Identifier: Apache-2.0
"""One call that puts a trained CNN on the fused ops: :func:`fastcnn.accelerate`, which is also this package's name."""

import sys
from types import ModuleType
from typing import Any

from .api import ToleranceError, accelerate
from .archive import ArchiveError
from .capture import CaptureError
from .module import Accelerated, Unchanged, load
from .profile import Profile, Step
from .report import Report

__all__ = [
    "Accelerated",
    "ArchiveError",
    "CaptureError",
    "Profile",
    "Report",
    "Step",
    "ToleranceError",
    "Unchanged",
    "accelerate",
    "load",
]


class _Callable(ModuleType):
    """Importing a part of this package sets ``fastcnn.accelerate`` to the package, where users call a function."""

    def __call__(self, *args: Any, **kwargs: Any) -> Accelerated | Unchanged:
        return accelerate(*args, **kwargs)


sys.modules[__name__].__class__ = _Callable
