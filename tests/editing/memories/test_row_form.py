"""Rows in smaller forms: how many bytes they take, how far they are from what was solved, and how they are read."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import same_bits

from corrigenda.editing import AssociativeConfig
from corrigenda.editing.memories.row_banks import RowBanks
from corrigenda.editing.memories.row_form import WHOLE, RowForm
from corrigenda.editing.methods.associative.config import row_form

CPU = torch.device("cpu")


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(
    "settings, size",
    [
        ({"key_dimensions": None, "value_dtype": "model"}, 8 * 2 * (14336 + 4096)),
        ({}, 8 * (2 * 256 + 4096 + 4)),
        ({"key_dimensions": 256, "value_dtype": "bfloat16"}, 8 * 2 * (256 + 4096)),
    ],
)
def test_bytes_of_eight_positions_at_llama_3_8b(settings, size):
    form = row_form(AssociativeConfig(**settings))
    rows = form.kept(torch.zeros(8, form.key_dimensions or 14336), torch.zeros(8, 4096), torch.bfloat16)
    assert rows.nbytes == size and (size <= 45_000) == (not settings)


def test_int8_values_are_within_half_a_step():
    values = normal(5, 64) * torch.tensor([1e-3, 1.0, 30.0, 0.0, 500.0])[:, None]
    rows = RowForm(value_dtype="int8").kept(normal(5, 8), values, torch.float32)
    assert rows.values.dtype == torch.int8 and rows.values[3].count_nonzero() == 0
    assert ((rows.read_values - values).abs() <= 0.5001 * rows.scales[:, None]).all()
    again = RowForm(value_dtype="int8").rounded(rows.read_values)
    torch.testing.assert_close(again, rows.read_values, rtol=1e-6, atol=0)
    assert same_bits(WHOLE.rounded(values), values)


def test_projected_keys_keep_their_cosines():
    form = RowForm(256, seed=3)
    projection = form.projection(2000, CPU)
    assert same_bits(projection, form.projection(2000, CPU))
    assert not torch.equal(projection, RowForm(256, seed=4).projection(2000, CPU))
    assert projection.abs().unique().tolist() == [1 / 16] and abs(float(projection.mean())) < 1e-3
    one, other = normal(40, 2000), normal(1, 2000, seed=1)
    mixed = other + one
    before = F.cosine_similarity(mixed, other)
    after = F.cosine_similarity(mixed @ projection, other @ projection)
    assert (before - after).abs().max() < 4 / 16 and (before - after).abs().mean() < 1 / 16


@pytest.mark.parametrize("form", [RowForm(32, "int8", 5), RowForm(None, "int8"), RowForm(32, "bfloat16", 5), WHOLE])
def test_reading_is_that_of_the_formula(form):
    width, outputs, rows, beta = 100, 24, 11, 4.0
    banks = RowBanks(width, outputs, beta, CPU, torch.float32, form)
    banks.background.copy_(normal(width, seed=9))
    keys, values = F.normalize(banks.projected(normal(rows, width, seed=1)), dim=-1), normal(rows, outputs, seed=2)
    kept = form.kept(keys, values, torch.float32)
    for _ in range(70):  # the banks grow
        place = banks.put(*kept)
    assert all(same_bits(one, other) for one, other in zip(banks.kept_rows(place), kept) if other is not None)
    x, out = normal(3, width, seed=3), normal(3, outputs, seed=4)
    first = torch.tensor([True, False, False])
    route = torch.tensor([place, place, -1], dtype=torch.int32)
    found = out.clone()
    banks.read_(found, x, route, first)
    read_keys, read = (part.float() for part in banks.rows_of(place))
    direction = F.normalize(banks.projected(x - banks.background), dim=-1)
    share = torch.softmax(beta * direction[1] @ read_keys[1:].T, dim=-1)
    torch.testing.assert_close(found, out + torch.stack([read[0], share @ read[1:], torch.zeros(outputs)]))
    assert same_bits(found[2], out[2])
    told = out.clone()
    banks.read_rows_(told, route, torch.tensor([10, 0, 1], dtype=torch.int32))
    torch.testing.assert_close(told, out + torch.stack([read[10], read[0], torch.zeros(outputs)]))
    assert same_bits(told[2], out[2])
