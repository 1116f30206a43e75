# SPDX-License-Identifier: Apache-2.0
"""What bench_peers.py measures beside plain speed: each module has ``measure``, for JSON rows, and ``table``."""
