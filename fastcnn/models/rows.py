# SPDX-License-Identifier: Apache-2.0
"""A line of the tables of inverted residuals."""

from typing import NamedTuple


class Row(NamedTuple):
    """One stage: expansion, kernel, output channels, repeats, stride of the first, squeeze-excite."""

    t: int
    k: int
    c: int
    n: int
    s: int
    se: bool = False
