# SPDX-License-Identifier: Apache-2.0
"""accelerate() beside the runtimes that people deploy CNNs on, in one process: outputs first, then times."""

from fastcnn.analysis.peers.engines import Case, missing
from fastcnn.analysis.peers.measure import Row, compare, original

__all__ = ["Case", "Row", "compare", "missing", "original"]
