"""EasyEdit's methods beside ours, and MEMOIR's: one model, one stream of edits, one scorer, one thread, one process.

    python bench/peers/easyedit.py --code EasyEdit --edits zsre.jsonl --method rome --at 10
    python bench/peers/easyedit.py --code MEMOIR --edits zsre.jsonl --method memoir --at 2

`--code` is a folder with EasyEdit's sources, of 10 June 2026 (6a164f9): later ones score each edit right after it
was made, and forget a stream of WISE. Of its packages the method's own modules alone are imported, so that few of
its requirements are needed. A method is configured by EasyEdit's own file for LLaMA, changed where the model asks
for it (`METHODS`), and ours is given the same layer, steps, rate and contexts. Where published code takes a text from
a data set that it downloads, it is given what ours takes: background prompts, and their second moment of keys. Edits
are the half of the subjects that no setting was chosen on; prompts stand in the template for both.

MEMOIR's code is a folder of the same make, with `easyeditor/models/memoir`; `memoir_code.py` has what it needs here.

Writes `peers-<file>-<method>-easyedit.json` and `-ours.json`, as `corrigenda bench` does. Seconds are of the thread.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import json
import subprocess
import sys
import tempfile
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from memoir_code import asking_memoir, give_background, without_gpu
from plain_scores import Asking, PlainScores, asking_of

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from record import edits_arguments, provenance, results_folder, seconds, write_json

from corrigenda.editing import Edit, EditedModel, load_base, load_edits
from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.covariance import background_covariances
from corrigenda.editing.comparison.plan import Plan, Run
from corrigenda.editing.comparison.runs import write_run

HOLLOW = ("easyeditor", "easyeditor.models", "easyeditor.trainer", "easyeditor.trainer.algs", "easyeditor.evaluate")
"""Packages whose own file imports the whole library: their modules are found, and that file is not run."""

UNUSED = {"wandb": ("run",), "hydra": (), "datasets": ("load_dataset",)}
"""Packages that published code imports and here needs nothing of, with the names that it looks for in them."""


@dataclass(frozen=True)
class Peer:
    """A method as EasyEdit has it, and what makes ours the same.

    hparams: its class and the file under `hparams/`, or none where `changed` has all of it; changed: for SmolLM2
    apply: a function, or a class of which one object writes the whole stream
    ours: settings of our method; batch: edits that are handed over at once, 0 for all
    """

    module: str
    apply: str
    hparams: tuple[str, str | None]
    changed: dict[str, Any]
    ours: tuple[str, dict[str, Any]]
    batch: int = 1
    padding: str = "right"
    code: str = "EasyEdit"


WISE_AS_PUBLISHED = {
    **{"learning_rate": 1.0, "mask_ratio": 0.2, "alpha": 5.0, "beta": 20.0, "gamma": 10.0, "margin_weight": 1.0},
    **{"spared": 0.0, "distance_tokens": "row", "reduction": "published", "threshold_from": "edits", "act_ratio": 0.88},
    **{"irrelevant_prompts": 1, "merge_scale": 1.0},
}
"""What our WISE has otherwise on SmolLM2, whose own settings EasyEdit's code cannot be given."""

SPREAD = {"layers": [9, 10, 11, 12], "v_loss_layer": 29}
"""Where MEMIT and AlphaEdit write on SmolLM2, as ours do there."""

METHODS = {
    "rome": Peer(
        "rome.rome_main",
        "apply_rome_to_model",
        ("ROMEHyperParams", "ROME/llama-7b.yaml"),
        {"layers": [12], "v_loss_layer": 29, "context_template_length_params": [[5, 5]]},
        ("rome", {"layer": 12, "contexts": 6}),
    ),
    "memit": Peer(
        "memit.memit_main",
        "apply_memit_to_model",
        ("MEMITHyperParams", "MEMIT/llama-7b.yaml"),
        {**SPREAD, "mom2_update_weight": 200},
        ("memit", {"layer": 12, "first_layer": 9, "covariance_weight": 200, "contexts": 6}),
        batch=0,
    ),
    "alphaedit": Peer(
        "alphaedit.AlphaEdit_main",
        "apply_AlphaEdit_to_model",
        ("AlphaEditHyperParams", "AlphaEdit/llama3-8b.yaml"),
        {**SPREAD, "P_loc": "none", "v_lr": 0.5, "v_weight_decay": 1e-3, "clamp_norm_factor": 4.0},
        ("alphaedit", {"layer": 12, "first_layer": 9, "ridge": 1.0, "contexts": 6}),
        batch=0,
    ),
    "ultraedit": Peer(
        "ultraedit.ultraedit_main",
        "UltraEditRewriteExecutor",
        ("UltraEditHyperParams", "UltraEdit/mistral-7b.yaml"),
        {"inner_params": ["model.layers.27.mlp.down_proj", "model.layers.28.mlp.down_proj"], "lr": 4e-3, "half": False},
        ("ultraedit", {"modules": "down_proj:27-28", "learning_rate": 4e-3}),
        batch=0,
        padding="left",
    ),
    "grace": Peer(
        "grace.grace_main",
        "apply_grace_to_model",
        ("GraceHyperParams", "GRACE/llama-7b.yaml"),
        {"inner_params": ["model.layers[23].mlp.down_proj.weight"], "eps": 5.0},
        ("grace", {"layer": 23, "radius": 5.0, "mode": "published"}),
        padding="left",
    ),
    "wise": Peer(
        "wise.wise_main",
        "apply_wise_to_model",
        ("WISEHyperParams", "WISE/llama-7b.yaml"),
        {"inner_params": ["model.layers[24].mlp.down_proj.weight"], "n_iter": 30},
        ("wise-retrieve", {"layer": 24, "steps": 30, "contexts": 11, "decay": "all", **WISE_AS_PUBLISHED}),
        padding="left",
    ),
    "memoir": Peer(
        "memoir.memoir_main",
        "apply_memoir_to_model",
        ("MEMOIRHyperParams", None),
        {
            **{"edit_lr": 4.0, "n_iter": 30, "objective_optimization": "only_label", "alg_name": "MEMOIR"},
            **{"inner_params": ["model.layers[25].mlp.down_proj.weight"], "top_k": 438, "irr_threshold": 0.395},
        },
        ("memoir", {"layer": 25, "learning_rate": 4.0, "top_k": 438, "threshold": 0.395}),
        padding="left",
        code="MEMOIR",
    ),
    "ft-m": Peer(
        "ft.ft_main",
        "apply_ft_to_model",
        ("FTHyperParams", "FT/llama-7b.yaml"),
        {"layers": [20], "objective_optimization": "target_new"},
        ("ft-m", {"layer": 20, "learning_rate": 5e-4}),
    ),
}


def open_code(folder: Path) -> None:
    """Let EasyEdit's modules be imported, without what their packages import besides."""
    for name in HOLLOW:
        package = types.ModuleType(name)
        package.__path__ = [str(folder.joinpath(*name.split(".")))]
        sys.modules[name] = package
    for name, asked in UNUSED.items():
        package = types.ModuleType(name)
        vars(package).update(dict.fromkeys(asked))
        sys.modules.setdefault(name, package)


def hparams_of(peer: Peer, folder: Path, module: Any) -> Any:
    """The published configuration for LLaMA, as it is for the model here."""
    kind, file = peer.hparams
    # Its code asks the model's name for "llama", and a number for a GPU.
    changed = {**peer.changed, "model_name": "llama-smollm2", "device": "cpu"}
    if file is None:
        return getattr(module, kind)(**changed)
    hparams = getattr(module, kind).from_hparams(str(folder / "hparams" / file))
    for name, value in changed.items():
        if not hasattr(hparams, name):
            raise SystemExit(f"EasyEdit's configuration has no `{name}`: this is another version of it.")
        setattr(hparams, name, value)
    hparams.sequential_edit = True  # WISE's code asks for it, and its configuration has no such field
    return hparams


def request_of(edit: Edit, prompts: Any, number: int) -> dict[str, Any]:
    """An edit as EasyEdit's methods take one; `loc_prompt` is the irrelevant text of WISE's margin."""
    background = background_prompts()
    return {
        "prompt": prompts.wrap(edit.prompt),
        "target_new": edit.target,
        "subject": edit.subject,
        "ground_truth": "",
        "loc_prompt": background[number % len(background)],
    }


def give_covariance(module: Any, peer: Peer, model: Any, tokenizer: Any, edited: EditedModel) -> None:
    """Put our second moment of keys where MEMIT's and AlphaEdit's code keep their own of a download."""
    layers = peer.changed["layers"]
    found = background_covariances(edited.decoder, tokenizer, layers, background_prompts())
    name = model.config._name_or_path.replace("/", "_")
    for layer in layers:
        module.COV_CACHE[name, f"model.layers.{layer}.mlp.down_proj"] = found[layer].matrix.float().cpu()


def asking(method: str, model: Any, edited: Any, tokenizer: Any) -> Asking:
    """How the model that a method leaves is asked: through the wrapper, where the method has one."""
    if edited is model:
        return asking_of(model, tokenizer)
    if method == "memoir":
        return asking_memoir(edited, asking_of(edited.model, tokenizer))
    plain = asking_of(edited, tokenizer)
    if method != "grace":
        return plain

    def logits(ids: torch.Tensor, prompt: int) -> torch.Tensor:
        # Of a prompt with its answer GRACE's key is at the prompt's last token, as when the edit was made.
        edited.model.get_submodule(edited.layer.replace("[", ".").replace("]", "")).key_id = prompt - 1
        return plain.logits(ids, prompt)

    return Asking(logits, plain.generate)


@contextlib.contextmanager
def silent() -> Iterator[None]:
    """Within: what published code prints at each step is not shown."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


def theirs(args: Any, peer: Peer, edits: list[Edit], path: Path, tell: Callable[[str], None], work: Path) -> None:
    """Write and score the stream by published code; `work` is a folder for what that code reads."""
    open_code(args.code)
    module = importlib.import_module(f"easyeditor.models.{peer.module}")
    model, tokenizer = load_base(args.model)
    tokenizer.pad_token_id, tokenizer.padding_side = tokenizer.eos_token_id, peer.padding
    ours = EditedModel.wrap(model, tokenizer, template=args.template)
    hparams = hparams_of(peer, args.code, module)
    if args.method in ("memit", "alphaedit"):
        give_covariance(module, peer, model, tokenizer, ours)
    prompts = ours.prompts
    ours.detach()
    if args.method == "memoir":
        give_background(hparams, model, tokenizer, work)
    scores = PlainScores(prompts, tokenizer, edits, asking_of(model, tokenizer))
    result = {
        "name": path.stem,
        "method": args.method,
        "code": {"name": peer.code, "commit": args.code_commit or commit_of(args.code)},
        "settings": {name: value for name, value in vars(hparams).items() if name not in ("model_name", "stats_dir")},
        "complete": False,
        "after": {},
    }
    apply = getattr(module, peer.apply)
    if isinstance(apply, type):
        apply = apply().apply_to_model
    edited, done, writing = model, 0, 0.0
    for stop in args.at:
        requests = [request_of(edit, prompts, number) for number, edit in enumerate(edits)][done:stop]
        size = peer.batch or len(requests)
        if args.method == "ultraedit":
            hparams.batch_size, hparams.batch_size_once = size, min(size, hparams.batch_size_once)
        start = seconds()
        for first in range(0, len(requests), size):
            part = requests[first : first + size]
            with silent(), without_gpu(), contextlib.chdir(work):  # where AlphaEdit's code leaves its null space
                edited, _ = apply(model, tokenizer, part, hparams, keep_original_weight=False)
        writing += seconds() - start
        done, start = stop, seconds()
        with silent():
            found = scores.score(edits[:stop], asking(args.method, model, edited, tokenizer))
        result["after"][str(stop)] = {
            **found,
            "seconds_per_edit": writing / stop,
            "edits_per_second": stop / writing,
            "seconds_of_scoring": seconds() - start,
        }
        result["complete"] = stop == args.at[-1]
        save(path, result, args)
        tell(f"{path.stem}, {stop} edits: {json.dumps(result['after'][str(stop)])}")


def save(path: Path, result: dict[str, Any], args: Any) -> None:
    of_run = {"edits": args.edits.name, "half": "reported", "template": args.template, "threads": 1}
    write_json(path, {**result, **provenance(), **of_run})


def commit_of(folder: Path) -> str | None:
    """The commit that a folder is a checkout of."""
    found = subprocess.run(["git", "-C", str(folder), "rev-parse", "HEAD"], capture_output=True, text=True)
    return found.stdout.strip() if found.returncode == 0 else None


def main() -> None:
    parser = edits_arguments(__doc__)
    parser.add_argument("--code", type=Path, required=True, help="a folder with EasyEdit's sources")
    parser.add_argument("--code-commit", help="which commit that is, where it is no checkout")
    parser.add_argument("--method", required=True, choices=list(METHODS))
    parser.add_argument("--at", type=int, nargs="+", default=[10], help="numbers of edits to score at")
    parser.add_argument("--only", choices=["theirs", "ours"], help="one of the two")
    parser.add_argument("--results", type=Path, default=results_folder())
    args = parser.parse_args()
    torch.set_num_threads(1)
    peer = METHODS[args.method]
    # As bench/methods.py: every second subject, those that settings were not chosen on.
    edits = load_edits(args.edits, unique_subject=True, limit=2 * max(args.at))[1::2]
    name = f"peers-{args.edits.stem}-{args.method}"
    if args.only != "theirs":
        method, settings = peer.ours
        path = args.results / f"{name}-ours.json"
        run = Run(path.stem, method, settings)
        plan = Plan(args.model, args.edits, args.at, [run], args.template)
        write_run(plan, run, edits, path, load_base(args.model), print)
        result = json.loads(path.read_text())
        del result["asked"]  # it has a path of this machine
        save(path, result, args)
    if args.only != "ours":
        path = args.results / f"{name}-{peer.code.casefold()}.json"
        with tempfile.TemporaryDirectory() as work:
            theirs(args, peer, edits, path, print, Path(work))


if __name__ == "__main__":
    main()
