# SPDX-License-Identifier: Apache-2.0
"""The 45 adversarial inputs: each a named error or the right answer, or here with the reason why it does not apply."""

import inspect

import pytest

from tests.cross import adversarial_arguments, adversarial_uses, adversarial_values

ROWS = [*adversarial_arguments.ROWS, *adversarial_values.ROWS, *adversarial_uses.ROWS]
APPLYING = [row for row in ROWS if row.check is not None]


def test_all_45_are_listed():
    assert sorted({row.number for row in ROWS}) == list(range(1, 46))
    reasons = {row.number: row.reason for row in ROWS if row.check is None}
    assert all(reasons.values())
    only_reasons = reasons.keys() - {row.number for row in APPLYING}
    assert sorted(only_reasons) == [23, 24, 30, 36, 37, 38]


@pytest.mark.parametrize("row", APPLYING, ids=lambda row: f"{row.number}-{row.what}")
def test_input(row, tmp_path):
    row.check(tmp_path) if inspect.signature(row.check).parameters else row.check()
