# SPDX-License-Identifier: Apache-2.0
"""Triton kernels and their launchers, a page per op, installed as ``fastcnn.triton_kernels``. Imports no Triton."""
