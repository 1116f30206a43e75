# SPDX-License-Identifier: Apache-2.0
"""One call that puts a trained CNN on the fused ops."""
