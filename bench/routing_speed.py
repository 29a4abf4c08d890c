"""What a decision of the router by meaning costs, beside many edits.

    python bench/routing_speed.py --edits 10000

Made-up edits. `no candidate`: requests that name no stored subject; `candidate`: a question about one in words not seen
before; `after 800 words`: the same at the end of a passage. The first question after edits came pays for the index.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from record import provenance, results_folder, write_json

from corrigenda.editing import Edit
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.loading import load_tokenizer
from corrigenda.editing.routers.meaning.decoys import texts_of
from corrigenda.editing.routers.meaning.router import MeaningRouter

SYLLABLES = ["ba", "kel", "mor", "tin", "vas", "dru", "lo", "fen", "gar", "ipo", "sul", "nex", "qui", "ran", "zet"]
FILLER = "The river was high that spring. Nobody in the valley had seen so much water before. The council met twice. "


def arguments():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--edits", type=int, default=10000)
    parser.add_argument("--model", default="smollm2", help="whose tokenizer counts tokens")
    parser.add_argument("--results", type=Path, default=results_folder())
    return parser.parse_args()


def name(number):
    """A made-up name, another for each number."""
    syllables = []
    while number or not syllables:
        number, rest = divmod(number, len(SYLLABLES))
        syllables.append(SYLLABLES[rest])
    return "".join(syllables).capitalize()


def timed(call):
    start = time.thread_time()
    call()
    return 1000 * (time.thread_time() - start)


def main():
    args = arguments()
    torch.set_num_threads(1)
    relations = list(texts_of()[0])[:20]
    subjects = [f"{name(i + 3000)} {name(7 * i + 50000)}" for i in range(args.edits)]
    edits = [
        Edit(f"What is the {relations[i % 20]} of {subject}?", "x", subject=subject)
        for i, subject in enumerate(subjects)
    ]
    router = MeaningRouter(load_tokenizer(args.model), background_prompts())
    # Their vectors are those of twenty masked questions; whole ones are not encoded here, which would take minutes.
    encode = router.encoder.encode
    router.encoder.encode = lambda texts: encode([relations[hash(text) % 20] for text in texts])
    fingerprints = router.fingerprints_of([edit.prompt for edit in edits], edits)
    del router.encoder.encode
    found = {"edits": len(edits), "bytes a fingerprint": sum(4 * len(row) for row in fingerprints) // len(edits)}
    found["adding, ms an edit"] = timed(lambda: router.add_fingerprints(fingerprints)) / len(edits)
    found["first question, ms"] = timed(lambda: router.decide(["What is it?"]))
    others = list(texts_of()[0])[40:70]
    kinds = {
        "no candidate": [f"What is the {relation} of Paris in France?" for relation in others],
        "candidate": [f"Could you tell me the {relation} of {subjects[37 * i]}?" for i, relation in enumerate(others)],
        "after 800 words": [
            f"{FILLER * 40}Do you know the {relation} that {subjects[41 * i]} has?" for i, relation in enumerate(others)
        ],
        "no candidate, 800 words": [f"{FILLER * 40}Is the {relation} good?" for relation in others],
    }
    for kind, requests in kinds.items():
        spent = sorted(timed(lambda request=request: router.decide([request])) for request in requests)
        router.encoder.forget()
        together = timed(lambda requests=requests: router.decide(requests)) / len(requests)
        found[kind] = {
            "median ms": round(spent[len(spent) // 2], 2),
            "90 % ms": round(spent[int(0.9 * len(spent))], 2),
            "ms in one batch": round(together, 2),
        }
    found = {key: round(value, 4) if isinstance(value, float) else value for key, value in found.items()}
    for key, value in found.items():
        print(key, value, flush=True)
    write_json(args.results / f"routing-speed-beside-{args.edits}.json", {**provenance(), **found})


if __name__ == "__main__":
    main()
