"""`bench/simulate_fleet.py`: its arithmetic, beside sums by hand, a cache that runs, and a queue that runs."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections import OrderedDict
from dataclasses import replace

import numpy as np
import pytest
from tree import ROOT

BENCH = ROOT / "bench"
COSTS = {
    "decision_ms": 1.0,
    "candidate_ms": 9.0,
    "decided_beside": 10_000,
    "scan_ms": 1e-5,
    "candidate_scan_ms": 2e-5,
    "router_bytes": 1_000.0,
    "open_ms": 0.09,
    "known_ms": 0.01,
}


@pytest.fixture(scope="module")
def fleets():
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCH))
        spec = importlib.util.spec_from_file_location("simulate_fleet", BENCH / "simulate_fleet.py")
        module = importlib.util.module_from_spec(spec)
        patch.setitem(sys.modules, spec.name, module)  # where dataclasses look for their annotations
        spec.loader.exec_module(module)
        yield module


@pytest.fixture
def costs(fleets):
    return fleets.Costs(**COSTS)


def test_sizes_are_those_of_the_rows(fleets):
    assumed = fleets.Assumed()
    assert fleets.row_bytes(fleets.FORMS["whole"], assumed) == 294_912
    assert fleets.row_bytes(fleets.FORMS["small"], assumed) == 36_896
    import torch

    from corrigenda.editing.memories.row_banks import RowBanks

    for form in fleets.FORMS.values():
        banks = RowBanks(640, 64, 10.0, torch.device("cpu"), torch.bfloat16, form)
        kept = form.kept(banks.projected(torch.randn(8, 640)), torch.randn(8, 64), torch.bfloat16)
        assert fleets.row_bytes(form, replace(assumed, width=640, out_width=64)) == kept.nbytes


def test_costs_are_read_from_the_results(fleets):
    found = fleets.Costs.read(BENCH / "results" / "cpu")
    more = json.loads((BENCH / "results" / "cpu" / "routing-speed-beside-100000.json").read_text())
    assert more["edits"] == 100_000
    beside_more = fleets.reckon(fleets.Fleet(100_000, 1, share=1.0), found, fleets.Assumed())["decision ms"]
    assert beside_more == pytest.approx(more["candidate"]["median ms"])
    beside_more = fleets.reckon(fleets.Fleet(100_000, 1, share=0.0), found, fleets.Assumed())["decision ms"]
    assert beside_more == pytest.approx(more["no candidate"]["median ms"])
    assert found.decided_beside == 10_000 and 0 < found.decision_ms < found.candidate_ms


def test_hits_are_those_of_a_cache_that_runs(fleets):
    edits, room = 500, 60
    weights = 1 / np.arange(1, edits + 1)
    asked = np.random.default_rng(0).choice(edits, 60_000, p=weights / weights.sum())
    cache, hits = OrderedDict(), 0
    for number, edit in enumerate(asked):
        hits += edit in cache and number >= 10_000
        cache[edit] = None
        cache.move_to_end(edit)
        if len(cache) > room:
            cache.popitem(last=False)
    assert fleets.hit_share(edits, room, 1.0) == pytest.approx(hits / 50_000, abs=0.01)
    assert fleets.hit_share(500, 500, 1.0) == 1.0
    assert fleets.hit_share(1_000, 100, 0.0) == pytest.approx(0.1, abs=1e-3)  # all asked for alike


def test_requests_wait_as_in_a_queue_that_runs(fleets):
    chance = np.random.default_rng(0)
    came, free, waited = np.cumsum(chance.exponential(1 / 100, 200_000)), 0.0, 0.0
    service = np.where(chance.random(200_000) < 0.2, 0.02, 0.003)
    for at, takes in zip(came, service):
        begins = max(at, free)
        waited += begins - at
        free = begins + takes
    mean, square = float(service.mean()), float((service**2).mean())
    assert fleets.waiting(100, mean, square, 1) == pytest.approx(waited / 200_000, rel=0.05)
    assert fleets.waiting(200, mean, square, 2) == fleets.waiting(100, mean, square, 1)
    assert fleets.waiting(1_000, mean, square, 1) == np.inf


def test_a_fleet_by_hand(fleets, costs):
    fleet = fleets.Fleet(1_010_000, 10, requests=100.0, share=0.5, gpu_bytes=36_896 * 1_010_000, changed=1_000)
    found = fleets.reckon(fleet, costs, fleets.Assumed())
    assert found["hit share"] == 1 and found["rows moved MB/s"] == 0 and found["row read ms"] == 0
    assert found["decision ms"] == pytest.approx((11 + 29) / 2)  # a million edits more: 10 and 20 ms
    rate, mean, square = 10, 0.02, (0.011**2 + 0.029**2) / 2
    assert found["waiting ms"] == pytest.approx(1e3 * rate * square / 2 / (1 - rate * mean))
    assert found["added ms"] == pytest.approx(found["decision ms"] + found["waiting ms"])
    assert found["turn over s"] == pytest.approx(10 * 1_000 * 36_896 / 1e9 + 0.1 + 0.004)
    assert found["start s"] == pytest.approx(101 + 1_010_000 * 36_896 / 1e9)
    assert found["router GB"] == pytest.approx(1.01)
    assert found["loads"]["decisions"] == pytest.approx(0.2)
    assert found["broken"] == ["time to start"] and found["first"] == "time to start"


def test_what_breaks_is_said(fleets, costs):
    small = fleets.Fleet(100_000, 1, requests=2_000.0, share=0.2, gpu_bytes=36_896 * 10_000)
    found = fleets.reckon(small, costs, fleets.Assumed())
    assert found["room"] == 10_000 and 0 < found["hit share"] < 1 and found["rows moved MB/s"] > 0
    assert found["first"] == "decisions" and "decisions" in found["broken"] and found["added ms"] is None
    seconds = 1e-3 * (1.9 * 0.8 + 10.8 * 0.2)
    assert fleets.most_requests(100_000, costs, fleets.Assumed(), 0.2) == pytest.approx(0.7 / seconds)


def test_the_committed_tables_are_what_the_script_says(fleets):
    kept = json.loads((BENCH / "results" / "cpu" / "fleet-simulated.json").read_text())
    costs, assumed = fleets.Costs.read(BENCH / "results" / "cpu"), fleets.Assumed()
    assert kept["measured"] == pytest.approx(vars(costs)) and kept["assumed"] == vars(assumed)
    found = json.loads(json.dumps(fleets.tables(costs, assumed)))
    for name, table in found.items():
        assert len(table) == len(kept[name])
    for row, other in zip(found["by replicas"], kept["by replicas"]):
        assert row["fleet"] == other["fleet"] and row["turn over s"] == pytest.approx(other["turn over s"])
        assert row["decision ms"] == pytest.approx(other["decision ms"])
