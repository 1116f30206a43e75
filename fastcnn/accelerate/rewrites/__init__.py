# SPDX-License-Identifier: Apache-2.0
"""Rewrites of the captured program, one pattern a file."""
