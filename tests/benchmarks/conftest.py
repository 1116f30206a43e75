# SPDX-License-Identifier: Apache-2.0
"""Models are traced on the meta device here."""

import torch

# torch lists the constructors that `with torch.device(...)` serves once, at its first use: now, while torch.empty is
# its own and not the one that poisoned_allocations puts there during a test.
with torch.device("meta"):
    torch.empty(0)
