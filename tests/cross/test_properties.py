# SPDX-License-Identifier: Apache-2.0
"""Properties P1 to P13 of the ops over drawn shapes. The long form draws twenty times as many, new ones each time."""

import pytest

from tests.cross import properties_of_behaviour, properties_of_values
from tests.cross.drawn import PROPERTIES, run

MODULES = (properties_of_values, properties_of_behaviour)  # importing them fills PROPERTIES


def test_every_property_is_there():
    assert {int(name.split("_")[0][1:]) for name in PROPERTIES} == set(range(1, 14))
    assert {check.__module__ for check, _, _ in PROPERTIES.values()} == {module.__name__ for module in MODULES}


@pytest.mark.parametrize("name", PROPERTIES)
def test_property(name):
    run(name)


@pytest.mark.long
@pytest.mark.parametrize("name", PROPERTIES)
def test_property_at_length(name):
    run(name, times=20)
