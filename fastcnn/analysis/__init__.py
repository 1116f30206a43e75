# SPDX-License-Identifier: Apache-2.0
"""What a net costs, counted on the meta device: nothing is computed."""

from fastcnn.analysis.summary import Layer, Summary, summarize

__all__ = ["Layer", "Summary", "summarize"]
