"""The learning rate by the size of a model."""

import pytest

from rewards.models.suited_rate import suited_rate


@pytest.mark.parametrize("parameters", [20_000, 950_912, 1_000_000])
def test_up_to_a_million_it_is_the_rate_itself(parameters):
    for rate in (5e-4, 3e-3, 2e-4, 1.234567e-3):
        assert suited_rate(rate, parameters) == rate


@pytest.mark.parametrize(
    ("parameters", "adapters", "rate"),
    [
        (8_000_000, False, 2.5e-4),
        (1_000_000_000, False, 5e-5),
        (1_000_000_000, True, 5e-4),
        (1_000, True, 5e-3),
        (134_515_008, True, 9.8e-4),
    ],
)
def test_beyond_it_falls_with_the_cube_root_and_adapters_take_ten_times_as_much(parameters, adapters, rate):
    assert suited_rate(5e-4, parameters, adapters) == rate
