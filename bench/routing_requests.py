"""Which edit each kind of request gets, on subjects that no setting was chosen on.

    python bench/routing_requests.py --data FOLDER

The edits of one half of the subjects, of all files, are in one store; `request_kinds.py` says what is asked. `found`:
share of requests that get their edit; `wrong`: that get another one; `misfires`: of requests that no edit is about, the
share that gets one. Edits are not written: what is measured is the decision alone.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from record import provenance, results_folder, write_json
from request_kinds import Half, shares

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.routers.meaning.router import MeaningRouter
from corrigenda.editing.routers.tokens import TokenRouter


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer counts tokens")
    parser.add_argument("--half", type=int, default=1, help="0: the half that the rule was fitted on")
    parser.add_argument("--kinds", nargs="*", help="only kinds that begin so")
    parser.add_argument("--routers", nargs="*", default=["tokens", "meaning"])
    parser.add_argument("--no-subjects", action="store_true", help="edits do not say whom they are about")
    parser.add_argument("--show", type=int, default=0, help="print that many failures of each kind")
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def measured(router, half, requests, show):
    """By kind: number, and the shares."""
    ids = [edit.id for edit in half.edits]
    prompts = {edit.id: edit.prompt for edit in half.edits}
    got = []
    for start in range(0, len(requests), 50):
        route = router.decide([request.text for request in requests[start : start + 50]]).route.tolist()
        got += [ids[place] if place >= 0 else None for place in route]
    rows = shares(requests, got)
    for kind, row in rows.items():
        print(f"{kind:40}", row, flush=True)
        failures = [
            (edit, request) for edit, request in zip(got, requests) if request.kind == kind and edit != request.wanted
        ]
        for edit, request in failures[:show]:
            print("   ", request.text[-160:], "| wanted:", prompts.get(request.wanted), "| got:", prompts.get(edit))
    return rows


def main():
    args = arguments()
    torch.set_num_threads(1)
    half = Half(args.data, args.half, subjects=not args.no_subjects)
    requests = [r for r in half.requests if not args.kinds or r.kind.startswith(tuple(args.kinds))]
    tokenizer = load_tokenizer(args.model)
    found = {}
    for name in args.routers:
        router = {"tokens": TokenRouter, "meaning": MeaningRouter}[name](tokenizer, background_prompts())
        router.add_fingerprints(router.fingerprints_of([edit.prompt for edit in half.edits], half.edits))
        print(f"== {name}", flush=True)
        found[name] = measured(router, half, requests, args.show)
    if not args.kinds and len(args.routers) == 2:
        suffix = "-no-subjects" if args.no_subjects else ""
        name = f"routing-requests{'-fitted-half' if args.half == 0 else ''}{suffix}.json"
        write_json(args.results / name, {**provenance(), "edits": len(half.edits), **found})


if __name__ == "__main__":
    main()
