"""Banks of several forms read as one: each edit's residual has the bits that banks of its form alone give."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from cases import same_bits

from corrigenda.editing.memories.mixed_banks import MixedBanks
from corrigenda.editing.memories.row_banks import RowBanks
from corrigenda.editing.memories.row_form import WHOLE, RowForm

CPU = torch.device("cpu")
SMALL, OTHER_SEED = RowForm(32, "int8", 5), RowForm(32, "int8", 6)
WIDTH, OUTPUTS, BETA = 100, 24, 4.0


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Beside:
    """Mixed banks, and of each form banks of its own with the same edits at the places of `alone`."""

    def __init__(self, *forms):
        self.mixed = MixedBanks(WIDTH, OUTPUTS, BETA, CPU)
        self.mixed.background.copy_(normal(WIDTH, seed=9))
        self.alone = {form: RowBanks(WIDTH, OUTPUTS, BETA, CPU, torch.float32, form) for form in forms}
        for banks in self.alone.values():
            banks.background.copy_(self.mixed.background)
        self.places = []

    def put(self, form, rows, seed):
        banks = self.alone[form]
        keys = F.normalize(banks.projected(normal(rows, WIDTH, seed=seed)), dim=-1)
        kept = form.kept(keys, normal(rows, OUTPUTS, seed=seed + 1), torch.float32)
        self.places.append((form, banks.put(*kept), self.mixed.put(form, kept)))
        return self.places[-1][2]

    def check(self):
        """Every edit at two tokens, some tokens at none; by likeness and by told rows."""
        asked = [*self.places, None, *self.places]
        x, out = normal(len(asked), WIDTH, seed=3), normal(len(asked), OUTPUTS, seed=4)
        out[len(self.places)] = -0.0
        first = torch.arange(len(asked)) < len(self.places)
        together = torch.tensor([-1 if one is None else one[2] for one in asked], dtype=torch.int32)
        row = torch.full_like(together, 1)
        for read in ("read_", "read_rows_"):
            found = out.clone()
            given = (together, row) if read == "read_rows_" else (x, together, first)
            getattr(self.mixed, read)(found, *given)
            expected = out.clone()
            for form, banks in self.alone.items():
                own = [one[1] if one is not None and one[0] == form else -1 for one in asked]
                own = torch.tensor(own, dtype=torch.int32)
                getattr(banks, read)(expected, *((own, row) if read == "read_rows_" else (x, own, first)))
            assert same_bits(found, expected)
            assert same_bits(found[len(self.places)], out[len(self.places)])
            assert (found != out).any(1).sum() == len(asked) - 1


def test_an_edits_residual_has_the_bits_of_banks_of_its_form_alone():
    beside = Beside(WHOLE, SMALL, OTHER_SEED)
    for number in range(70):  # the banks grow
        beside.put((WHOLE, SMALL, OTHER_SEED)[number % 3], 2 + number % 9, 10 * number)
    beside.check()
    assert [form for form, _, _ in beside.places[:3]] == beside.mixed.forms()
    assert beside.places[0][2] == beside.places[0][1] == 0


def test_a_freed_place_is_used_again_by_its_own_form():
    beside = Beside(WHOLE, SMALL)
    places = [beside.put(form, 3, seed) for seed, form in enumerate((WHOLE, SMALL, WHOLE, SMALL))]
    beside.mixed.free(places[1])
    beside.alone[SMALL].free(beside.places.pop(1)[1])
    assert beside.put(WHOLE, 3, 8) not in places
    assert beside.put(SMALL, 9, 9) == places[1]
    beside.check()
    kept = beside.alone[SMALL].kept_rows(beside.places[-1][1])
    assert all(map(same_bits, beside.mixed.kept_rows(places[1]), kept))


@pytest.mark.parametrize("fixed", [False, True])
def test_fixed_banks_keep_addresses_and_forms(fixed):
    beside = Beside(WHOLE, SMALL)
    for form in (WHOLE, SMALL):
        beside.mixed.of(form).reserve(8)
    if fixed:
        beside.mixed.fix()
    before = [buffer.data_ptr() for buffer in beside.mixed.buffers()]
    for seed, form in enumerate((SMALL, WHOLE, SMALL)):
        beside.put(form, 5, seed)
    assert [buffer.data_ptr() for buffer in beside.mixed.buffers()] == before
    assert all(banks.fixed == fixed for banks in beside.mixed)
    assert beside.mixed.takes(SMALL) and beside.mixed.takes(OTHER_SEED) != fixed
    beside.check()
