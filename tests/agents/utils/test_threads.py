import pytest
import torch

from agents.utils import choose_threads, threads


@pytest.mark.parametrize(("parameters", "width"), [(1_000, 128), (1_000_000, 128), (8_000_000, 256), (134_515_008, 656)])
def test_the_faster_number_is_set_for_matrices_as_wide_as_the_model(monkeypatch, parameters, width):
    before, asked = torch.get_num_threads(), []

    def seconds(count, columns):
        asked.append((count, columns))
        return {1: 2.0, 2: 1.0}[count]

    monkeypatch.setattr(threads, "_seconds", seconds)
    try:
        torch.set_num_threads(2)
        assert choose_threads(parameters) == torch.get_num_threads() == 2
        assert sorted(asked) == [(1, width), (2, width)]
    finally:
        torch.set_num_threads(before)


def test_the_time_of_one_product_is_measured():
    before = torch.get_num_threads()
    try:
        assert 0 < threads._seconds(1, 64) < 1
    finally:
        torch.set_num_threads(before)
