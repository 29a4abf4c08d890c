"""What stands above the kernels, on the device: nothing meets there what CUDA would refuse.

The device is the CPU in disguise, so results must be the CPU's, but for rounding. `test_other_device.py` runs
this file.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import functools
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from batched import EDITED, PLAIN, batch, tokens
from op_arguments import arguments, flat
from served import OF_ACME, SHARED, store
from tiny import tiny_model, tiny_tokenizer
from torch.nn.attention import SDPBackend, sdpa_kernel
from waits import Waits

import other_device
from corrigenda.editing import (
    AssociativeConfig,
    Edit,
    EditedModel,
    Evaluator,
    LiveEditor,
    Locality,
    MemoirConfig,
    WiseConfig,
)
from corrigenda.editing.memories.mixed_banks import MixedBanks
from corrigenda.editing.memories.row_form import RowForm
from corrigenda.editing.model import capacity
from corrigenda.editing.model.layer import EditedOutput
from corrigenda.editing.routers.context import RoutingContext
from corrigenda.kernels import dispatch
from corrigenda.serving import Catalogue, ServedMemory, ServingSettings, Slots
from corrigenda.serving.batching import ServedModel

sys.path.append(str(Path(__file__).parents[3] / "bench"))

pytestmark = pytest.mark.usefixtures("few_background_prompts")

FEW = {"contexts": 2, "steps": 4, "batch_size": 2}
SHARDS = {**FEW, "variant": "retrieve", "save_every": 2, "act_ratio": 1.0}
SHARDED = WiseConfig(**SHARDS, merge_every=4, threshold_from="edits")
CONFIGS = {
    "associative": ("llama", AssociativeConfig(**FEW, router="tokens")),
    "mask router": ("mistral", AssociativeConfig(**FEW, router="mask", router_layer=1)),
    "memoir": ("llama", MemoirConfig(**FEW, decay="active")),
    "causal memoir": ("mistral", MemoirConfig(**FEW, scope="causal", record_rank=2)),
    "wise-merge": ("llama", WiseConfig(**{**SHARDS, "variant": "merge"}, merge_every=4, merge="dare_ties")),
    "wise-retrieve": (
        "mistral",
        WiseConfig(**SHARDS, merge_every=None, threshold_from="background", spared=5.0, replay=True),
    ),
    "wise, disjoint": (
        "llama",
        WiseConfig(**SHARDS, merge_every=4, threshold_from="edits", disjoint_masks=True, mask_ratio=0.2, decay="all"),
    ),
}
EDITS = [
    Edit(
        "What is the capital of Zubrowka?",
        "Lutz City",
        id="a",
        rephrases=["Zubrowka has which capital?"],
        localities=[Locality("Why is the sky blue?", "Light")],
    ),
    *SHARED[1:],
    Edit("Where is the mill?", "Upton", id="d"),
]
ASKED = [*(edit.prompt for edit in EDITS), *PLAIN[:1]]


@pytest.fixture(scope="module", autouse=True)
def other(tmp_path_factory):
    """The device; and attention and ops of one kind on both."""
    other_device.load(other_device.build(tmp_path_factory.mktemp("device")))
    with sdpa_kernel(SDPBackend.MATH), dispatch.use("reference"):
        yield


@pytest.fixture(scope="module", params=CONFIGS)
def lives(request, other, tmp_path_factory):
    """What comes of a model's whole life: on the CPU, on the device, and on it as the default one."""
    found = []
    for place, default in (("cpu", None), ("other", None), ("other", "other")):
        with torch.device(default) if default else contextlib.nullcontext():
            found.append(life(*CONFIGS[request.param], place, tmp_path_factory.mktemp("life")))
    return found


def life(kind, config, device, folder):
    """Edit, answer, generate, score, undo, write live, save, load: texts and routes; and the tensors they are from."""
    edited = EditedModel.wrap(tiny_model(kind).to(device), tiny_tokenizer(), config, template="Question: {prompt}")
    told, tensors = {}, {}

    def note(name, edited=edited):
        told[name] = [(answer.text, answer.edit and answer.edit.id) for answer in edited.answer(ASKED, 4)]
        tensors[name] = {key: value.cpu().clone() for key, value in edited.method.state().items()}

    edited.edit(EDITS[:3], store=folder / "store")
    edited.edit(EDITS[3:], score_each=Evaluator(edited, free=False))
    note("edited")
    told["generated"] = [generated(edited, device, **options) for options in GENERATIONS]
    tensors["scores"] = edited.evaluate().to_dict()
    tensors["capacity"] = capacity.report(edited)
    edited.undo("b")
    note("undone")
    edited.redo("b")
    edited.save_pretrained(folder / "copy")
    edited.reserve(200)
    live = LiveEditor(edited)
    live.submit(Edit("What does Kmelt make?", "blue bricks", id="e")).result()
    live.close()
    note("superseded")
    edited.detach()
    again = EditedModel.from_pretrained(tiny_model(kind).to(device), folder / "copy", tokenizer=tiny_tokenizer())
    note("loaded", again)
    behind = EditedModel.from_pretrained(tiny_model(kind).to(device), folder / "store", tokenizer=tiny_tokenizer())
    again.detach()
    behind.write_into(folder / "store")
    behind.remove("a")
    note("removed", behind)
    behind.detach()
    return told, tensors


GENERATIONS = [
    {"do_sample": False},
    {"do_sample": False, "side": "right"},
    {"do_sample": True, "top_k": 9, "num_return_sequences": 2},
    {"do_sample": False, "num_beams": 2},
]


def generated(edited, device, side="left", **options):
    edited.tokenizer.padding_side = side
    prompts = [edited.prompts.wrap(prompt) for prompt in ASKED]
    torch.manual_seed(0)
    inputs = edited.tokenizer(prompts, padding=True, return_tensors="pt").to(device)
    output, found = edited.generate(**inputs, max_new_tokens=4, provenance=True, **options)
    return output.tolist(), [source.memory or (source.edit and source.edit.id) for source in found]


def test_a_life_on_it_is_the_one_on_the_cpu(lives):
    (told, tensors), *others = lives
    for told_there, tensors_there in others:
        assert told_there == told
        torch.testing.assert_close(tensors_there, tensors, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("name", CONFIGS)
def test_a_step_waits_for_the_device_once(name):
    """To learn whether an edit goes on: whatever else it needs is known before the first step."""
    kind, config = CONFIGS[name]
    found = []
    for steps in (2, 5):
        once = {"retries": 0} if hasattr(config, "retries") else {}
        endless = dataclasses.replace(config, steps=steps, stop_loss=0.0, **once)
        edited = EditedModel.wrap(tiny_model(kind).to("other"), tiny_tokenizer(), endless)
        edited.method.prepare()
        with Waits("other") as waits:
            solved = edited.method.solve(EDITS[:2])
        assert [one.written.steps for one in solved] == [steps] * 2
        found.append(Counter(waits.found))
        edited.detach()
    assert sum((found[1] - found[0]).values()) == 3, found


def test_it_refuses_what_cuda_refuses():
    here, there = torch.randn(4, 4), torch.randn(4, 4, device="other")
    rows = torch.tensor([0, 2])
    mixed = {
        "a sum": lambda: there + here,
        "a sum in place": lambda: here.add_(there),
        "a product": lambda: here @ there,
        "a choice": lambda: torch.where(there > 0, here, there),
        "a list": lambda: torch.cat([there, here]),
        "rows": lambda: there.index_select(0, rows),
        "the CPU's at indices of the device": lambda: here[rows.to("other")],
        "an embedding": lambda: torch.nn.functional.embedding(rows, there),
        "a generator": lambda: torch.randn(3, generator=torch.Generator(), device="other"),
    }
    for name, attempt in mixed.items():
        with pytest.raises(RuntimeError, match=r"same device|generator"):
            pytest.fail(f"{name} was taken: {attempt()}")
    with pytest.raises(TypeError, match="to numpy"):
        there.numpy()
    assert there.device == torch.device("other", 0) != torch.device("other")
    assert torch.equal((there[rows] * torch.tensor(2.0)).cpu(), there.cpu()[rows] * 2)


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_ops_take_tensors_of_one_device(op):
    function, given = getattr(torch.ops.corrigenda, op).default, arguments(op)
    there = [value.to("other") if isinstance(value, torch.Tensor) else value for value in given]
    for place, value in enumerate(given):
        if isinstance(value, torch.Tensor):
            with pytest.raises((ValueError, RuntimeError), match=r"on other|same device|on cpu"):
                function(*there[:place], value, *there[place + 1 :])
    expected, actual = function(*given), function(*there)
    for a, b in zip(flat(given[0] if expected is None else expected), flat(there[0] if actual is None else actual)):
        torch.testing.assert_close(b.cpu(), a)


@pytest.fixture(scope="module")
def folders(other, tmp_path_factory):
    root = tmp_path_factory.mktemp("stores")
    store(root / "shared", SHARED)
    store(root / "acme", OF_ACME, tiny_model().to("other"))
    return root


def test_a_served_layer_follows_edits_that_come_later(folders):
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(folders / "shared"))
    base = tiny_model().model.layers[catalogue.config.layer].mlp.down_proj.to("other")
    device = torch.device("other")
    memory = ServedMemory(catalogue.config, (base.in_features, base.out_features), device, torch.float32)
    memory.reserve(8)
    assert memory.banks.fixed
    context = RoutingContext(device)
    slots = Slots(context, 4, 16)
    layer = copy.deepcopy(base)
    layer.register_forward_hook(EditedOutput(memory.banks, context))
    (edits,) = catalogue.start.needed.values()
    memory.load(folders / "shared", edits)
    slots.start("edited", 3, memory.place(next(iter(edits))))
    slots.start("plain", 2, -1)
    slots.describe(["plain", "edited"], np.array([0, 0]), np.array([2, 3]))
    x = torch.randn(6, base.in_features, device="other")
    with torch.no_grad():
        differ = (layer(x) != base(x)).any(1)
    assert differ.tolist() == [False] * 4 + [True, False]
    slots.end("edited")
    assert memory.keep({next(iter(edits))}) == 2


def test_fixed_banks_of_several_forms_are_read_there(other):
    """Where passes may be captured, nothing is asked of the device, and no form comes after the start."""
    forms = [RowForm(), RowForm(32, "int8", 5)]
    found = []
    for device in (torch.device("cpu"), torch.device("other")):
        torch.manual_seed(0)
        banks = MixedBanks(96, 24, 4.0, device)
        banks.background.copy_(torch.randn(96))
        for form in forms:
            banks.of(form).reserve(4)
        banks.fix()
        places = []
        for form in forms:
            keys = torch.randn(3, 32 if form.key_dimensions else 96)
            places.append(banks.put(form, form.kept(keys, torch.randn(3, 24), torch.float32)))
        assert not banks.takes(RowForm(32, "int8", 6))
        x, out = torch.randn(4, 96).to(device), torch.randn(4, 24).to(device)
        route = torch.tensor([places[1], -1, places[0], places[1]], dtype=torch.int32).to(device)
        first = torch.tensor([True, False, False, False]).to(device)
        banks.read_(out, x, route, first)
        banks.read_rows_(out, route, torch.ones_like(route))
        found.append(out.cpu())
    torch.testing.assert_close(*found)


def test_a_served_model_answers_as_on_the_cpu(served_settings):
    answers = []
    for device in ("cpu", "other"):
        served = ServedModel(tiny_model().to(device), tiny_tokenizer(), served_settings)
        rows = served.encode([*EDITED, *PLAIN])
        for tenant in (None, "acme"):
            alone = [
                served.generate(torch.tensor([row], device=device), tenants=tenant, max_new_tokens=4, do_sample=False)
                for row in rows
            ]
            answers.append([output[0, len(row) :].tolist() for output, row in zip(alone, rows)])
        assert tokens(batch(served, rows, new=4)) == answers[-2]
        assert served.load(served_settings.edits[0])["added"] == []
        served.detach()
    assert answers[:2] == answers[2:] and answers[0] != answers[1]


def test_measurements_run_on_it(monkeypatch):
    import stream
    from editing_speed import dense_memoir
    from wise_dense import dense_loop, dense_scores

    model, tokenizer = stream.build("small", "other")
    for name, config in (("memoir", MemoirConfig), ("wise-batched", WiseConfig)):
        monkeypatch.setitem(stream.STREAMS, name, (functools.partial(config, contexts=2, steps=2), 1000, 2))
        row, edited = stream.measure(model, tokenizer, name, 2, "other")
        assert set(row["phase_shares"]) == {"prefix", "suffix and steps", "write", "the rest"} and row["edits"] == 2
        edited.detach()
        if name in stream.DENSE:
            assert stream.dense_seconds(model, tokenizer, name, 1, "other") > 0
    for loop_of, config, irrelevant in (
        (dense_memoir, MemoirConfig(**FEW), ("Why?", "So")),
        (dense_loop, SHARDED, [5]),
    ):
        model = tiny_model().to("other")
        edited = EditedModel.wrap(model, tiny_tokenizer(), config)
        loop = loop_of(model, edited)
        loop.steps = 2
        assert all(len(loop.edit(edit, irrelevant)) == 2 for edit in EDITS)
    assert set(dense_scores(loop, EDITS[:1])) == {"rel", "gen", "loc"}
