# SPDX-License-Identifier: Apache-2.0
"""Nets that no package holds, stated in plain torch.nn from their papers: what ours are compared with.

Each file has a ``NETS`` of its own: the collection's name and the function that builds the net.
"""

import importlib
import pkgutil
from collections.abc import Callable

from torch import nn

PLAIN: dict[str, Callable[..., nn.Module]] = {}
for _found in pkgutil.iter_modules(__path__, f"{__name__}."):
    PLAIN |= importlib.import_module(_found.name).NETS
