"""What a fleet that no machine here holds would cost: reckoned from what was measured, and from what is assumed.

    python bench/simulate_fleet.py                     # the tables of docs/results/fleet.md
    python bench/simulate_fleet.py --edits 200000 --replicas 40 --requests 4000 --share 0.2

Nothing is run. Measured costs come from the results that `COSTS` names, sizes from the shape of the layer; all else is
in `Assumed`, and stands in the result as such. Each replica has all edits, as `corrigenda rollout` makes them: only
the rows may be where there is room for fewer (transformers; vLLM wants room for all).
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path

import numpy as np
import torch
from record import ROOT, provenance, results_folder, write_json

from corrigenda.editing.memories.row_form import RowForm

FORMS = {"whole": RowForm(), "small": RowForm(256, "int8")}
MEASURED = ("routing-speed-beside-10000.json", "routing-speed-beside-100000.json", "store.json")
EDITS, REPLICAS = (10_000, 100_000, 1_000_000), (1, 10, 100, 1_000)


@dataclass(frozen=True)
class Costs:
    """What was measured, on one thread of a CPU, with made-up edits beside SmolLM2's tokenizer.

    decision_ms   of a request that names no stored subject, beside `decided_beside` edits
    candidate_ms  of one that an edit could answer: the encoder looks at it
    scan_ms, candidate_scan_ms   what one more stored edit adds to each, from there to ten times as many: to go on
                                 like that beyond is an assumption
    router_bytes  an edit's in the router, in the host's memory
    open_ms       an edit's when a ledger is opened
    known_ms      an edit's when the router comes to know it
    """

    decision_ms: float
    candidate_ms: float
    decided_beside: int
    scan_ms: float
    candidate_scan_ms: float
    router_bytes: float
    open_ms: float
    known_ms: float

    @classmethod
    def read(cls, folder: Path) -> Costs:
        """From the files `MEASURED` of a folder of results, of which the first two are of one machine."""
        routing, more, store = (json.loads((folder / name).read_text()) for name in MEASURED)
        added = more["edits"] - routing["edits"]
        return cls(
            decision_ms=routing["no candidate"]["median ms"],
            candidate_ms=routing["candidate"]["median ms"],
            decided_beside=routing["edits"],
            scan_ms=(more["no candidate"]["median ms"] - routing["no candidate"]["median ms"]) / added,
            candidate_scan_ms=(more["candidate"]["median ms"] - routing["candidate"]["median ms"]) / added,
            router_bytes=routing["bytes a fingerprint"],
            open_ms=1e3 * store["associative"]["open_ledger_seconds"] / store["associative"]["edits"],
            known_ms=routing["adding, ms an edit"],
        )


@dataclass(frozen=True)
class Assumed:
    """What nobody measured. popularity: the exponent of Zipf's law, by which edits are asked about.

    Rates are bytes a second: of a replica's copies to its GPU, of its reads from its own disk, of the folder that all
    share. threads: that decide, in a replica. bearable_*: from where on something counts as broken.
    """

    width: int = 14_336
    out_width: int = 4_096
    positions: int = 8
    popularity: float = 1.0
    copy_rate: float = 20e9
    disk_rate: float = 1e9
    shared_rate: float = 1e9
    round_trip_ms: float = 1.0
    threads: int = 1
    bearable_turn_s: float = 60.0
    bearable_start_s: float = 120.0
    host_bytes: float = 64e9


@dataclass(frozen=True)
class Fleet:
    """requests: a second, all together. share: of them, those about an edit. changed: edits that a roll-out brings."""

    edits: int
    replicas: int
    requests: float = 1_000.0
    share: float = 0.2
    gpu_bytes: float = 4e9
    changed: int = 1_000
    form: str = "small"


def row_bytes(form: RowForm, assumed: Assumed) -> int:
    """An edit's rows beside a model in bfloat16."""
    keys = torch.zeros(assumed.positions, form.key_dimensions or assumed.width)
    return form.kept(keys, torch.zeros(assumed.positions, assumed.out_width), torch.bfloat16).nbytes


def hit_share(edits: int, room: int, popularity: float) -> float:
    """How often the rows of an edit that is asked for are where the layer reads, of the `room` asked for last.

    By Che's approximation of a least-recently-used cache (IEEE JSAC 20(7), 2002): an edit is there when it was asked
    for within a time that is the same for all, and such that as many are there as there is room for.
    """
    if room >= edits:
        return 1.0
    asked = 1.0 / np.arange(1, edits + 1) ** popularity
    asked /= asked.sum()
    low, high = 0.0, 1.0
    while -np.expm1(-asked * high).sum() < room:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if -np.expm1(-asked * middle).sum() < room else (low, middle)
    return float((asked * -np.expm1(-asked * high)).sum())


def waiting(rate: float, service: float, square: float, threads: int) -> float:
    """Mean seconds that a request waits for one of `threads` deciders that share the load evenly; inf beyond them.

    Pollaczek and Khinchine's formula: service in seconds, square the mean of its square.
    """
    load = rate / threads * service
    return np.inf if load >= 1 else rate / threads * square / (2 * (1 - load))


def reckon(fleet: Fleet, costs: Costs, assumed: Assumed) -> dict[str, object]:
    """What a fleet costs: latency added to a request in ms, bytes moved a second, seconds to turn over; what breaks."""
    size = row_bytes(FORMS[fleet.form], assumed)
    room = min(fleet.edits, int(fleet.gpu_bytes // size))
    hits = hit_share(fleet.edits, room, assumed.popularity)
    rate = fleet.requests / fleet.replicas

    more = max(0, fleet.edits - costs.decided_beside)
    plain = 1e-3 * (costs.decision_ms + more * costs.scan_ms)
    about = 1e-3 * (costs.candidate_ms + more * costs.candidate_scan_ms)
    service = (1 - fleet.share) * plain + fleet.share * about
    square = (1 - fleet.share) * plain**2 + fleet.share * about**2
    queue = waiting(rate, service, square, assumed.threads)
    read = size / assumed.disk_rate + size / assumed.copy_rate
    missed = rate * fleet.share * (1 - hits)

    brought = min(fleet.changed, fleet.edits)
    copied = fleet.replicas * brought * size / assumed.shared_rate
    taken_in = 1e-3 * brought * (costs.open_ms + costs.known_ms)
    turn = copied + taken_in + 4e-3 * assumed.round_trip_ms
    start = 1e-3 * fleet.edits * (costs.open_ms + costs.known_ms) + room * size / assumed.disk_rate
    router = fleet.edits * costs.router_bytes
    loads = {
        "decisions": rate * service / assumed.threads,
        "room on the GPU for all rows": fleet.edits * size / fleet.gpu_bytes,
        "rows read from disk": missed * size / assumed.disk_rate,
        "memory of the router": router / assumed.host_bytes,
        "time to turn over": turn / assumed.bearable_turn_s,
        "time to start": start / assumed.bearable_start_s,
    }
    # Room for fewer is no breach: the others' rows are read when they are asked for.
    broken = [name for name, load in loads.items() if load > 1 and not name.startswith("room")]
    return {
        "fleet": asdict(fleet),
        "row bytes": size,
        "rows GB": fleet.edits * size / 1e9,
        "room": room,
        "hit share": hits,
        "decision ms": 1e3 * service,
        "waiting ms": 1e3 * queue if np.isfinite(queue) else None,
        "row read ms": 1e3 * fleet.share * (1 - hits) * read,
        "added ms": 1e3 * (service + queue + fleet.share * (1 - hits) * read) if np.isfinite(queue) else None,
        "rows moved MB/s": missed * size / 1e6,
        "turn over s": turn,
        "start s": start,
        "router GB": router / 1e9,
        "loads": loads,
        "first": max((name for name in loads if not name.startswith("room")), key=loads.__getitem__),
        "broken": broken,
    }


def most_requests(edits: int, costs: Costs, assumed: Assumed, share: float) -> float:
    """Requests a second that one replica's deciders take at seven tenths of what they could."""
    fleet = Fleet(edits, 1, 1.0, share)
    return 0.7 / reckon(fleet, costs, assumed)["loads"]["decisions"]


def tables(costs: Costs, assumed: Assumed) -> dict[str, object]:
    """Those of the documentation."""
    return {
        "by edits": [reckon(Fleet(edits, 10, form=form), costs, assumed) for edits in EDITS for form in FORMS],
        "by replicas": [
            reckon(Fleet(edits, replicas, requests=20.0 * replicas), costs, assumed)
            for edits in EDITS
            for replicas in REPLICAS
        ],
        "requests a second a replica": {
            str(edits): {str(share): most_requests(edits, costs, assumed, share) for share in (0.0, 0.2, 1.0)}
            for edits in EDITS
        },
        "hits by room": {
            str(edits): {str(room): hit_share(edits, room, assumed.popularity) for room in (1_000, 10_000, 100_000)}
            for edits in EDITS
        },
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for field in fields(Fleet):
        kind = {"form": str, "edits": int, "replicas": int, "changed": int}.get(field.name, float)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, choices=FORMS if kind is str else None)
    for field in fields(Assumed):
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=type(field.default), help="assumed")
    parser.add_argument("--measured", type=Path, default=ROOT / "bench" / "results" / "cpu", help="results to read")
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def main() -> None:
    asked = vars(arguments())
    given = {name: value for name, value in asked.items() if value is not None}
    costs = Costs.read(asked["measured"])
    assumed = replace(Assumed(), **{f.name: given[f.name] for f in fields(Assumed) if f.name in given})
    of_fleet = {f.name: given[f.name] for f in fields(Fleet) if f.name in given}
    if of_fleet:
        fleet = Fleet(**{"edits": 100_000, "replicas": 10, **of_fleet})
        print(json.dumps({"assumed": asdict(assumed), **reckon(fleet, costs, assumed)}, indent=2))
        return
    found = {"measured": asdict(costs), "assumed": asdict(assumed), **tables(costs, assumed)}
    write_json(asked["results"] / "fleet-simulated.json", {**provenance(), **found})
    for row in found["by edits"] + found["by replicas"]:
        fleet = row["fleet"]
        print(
            f"{fleet['edits']:>9,} edits {fleet['replicas']:>5,} replicas {fleet['form']:5}: "
            f"hits {row['hit share']:.3f}, decision {row['decision ms']:.2f} ms, added {row['added ms']}, "
            f"turn {row['turn over s']:.2f} s, start {row['start s']:.1f} s; {row['first']}; broken: {row['broken']}"
        )


if __name__ == "__main__":
    main()
