"""A model split over processes by transformers' tensor parallelism: what one process writes and answers."""

from __future__ import annotations

import warnings
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from cases import same_bits
from every_config import CONFIGS, EDITS
from gloo import in_processes
from saved import load
from tiny import save_tiny, tiny_model, tiny_tokenizer
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from corrigenda.editing import AssociativeConfig, CorrigendaError, EditedModel
from corrigenda.editing.backbone.identity import weight_sample
from corrigenda.editing.backbone.loading import load_base
from corrigenda.editing.backbone.parts import Parts, entries, flat_entries
from corrigenda.serving import ServedModel

pytest.importorskip("transformers.distributed", reason="before version 5 transformers split models otherwise")
from transformers.distributed import DistributedConfig

pytestmark = [
    pytest.mark.slow,
    pytest.mark.usefixtures("few_background_prompts"),
    pytest.mark.skipif(torch.accelerator.is_available(), reason="transformers would split it over the GPUs"),
]
CONFIG = replace(CONFIGS["associative"], key_dimensions=None, value_dtype="model")
"""Whole rows: where a value is rounded to int8, what differs by 1e-7 may be a step of 1/254 apart."""
ASKED = [*(edit.prompt for edit in EDITS), EDITS[0].rephrases[0], "Why is the sky blue?"]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return save_tiny(tmp_path_factory.mktemp("base"))


@pytest.fixture(scope="module")
def one(few_background_prompts):
    """The same edits, written by one process."""
    edited = EditedModel.wrap(tiny_model(), tiny_tokenizer(), CONFIG)
    edited.edit(EDITS)
    yield edited
    edited.detach()


def over_all(plan="auto"):
    """What torchrun's environment says of itself."""
    return DistributedConfig(tp_plan=plan, tp_size=dist.get_world_size())


def split(base):
    return EditedModel.from_pretrained(base, config=CONFIG, distributed_config=over_all())


def logits_of(edited):
    """What the model says after each prompt and its edit's first token, and by which edit."""
    rows = [edited.prompts.encode(edited.prompts.wrap(prompt)) for prompt in ASKED]
    found = []
    for row in rows:
        ids = torch.tensor([[*row, 7]])
        with edited.teacher_forcing(ids, [len(row)], [len(row) + 1]) as routes, torch.no_grad():
            logits = edited.model(ids).logits[0, -2:]
        found.append((logits, routes()))
    return found


def answers(edited):
    return [(answer.text, answer.edit and answer.edit.id) for answer in edited.answer(ASKED, 6, batch_size=1)]


def told(edited):
    """All that a user sees of it."""
    state = {name: tensor.clone() for name, tensor in edited.method.state().items()}
    return {
        "answers": answers(edited),
        "state": state,
        "snapshot": str(edited.store.snapshot),
        "logits": logits_of(edited),
    }


def check_equal(found, one):
    """Equal to what one process says, within rounding; in every process the same."""
    expected = told(one)
    for each in found:
        assert not isinstance(each, Exception), each
        assert each["answers"] == expected["answers"]
        assert each["snapshot"] == found[0]["snapshot"]
        for (logits, routes), (wanted, named) in zip(each["logits"], expected["logits"]):
            assert routes == named
            assert (logits - wanted).norm() < 1e-4 * wanted.norm()
        for name, tensor in expected["state"].items():
            assert same_bits(each["state"][name], found[0]["state"][name]), name
            assert (each["state"][name] - tensor).float().norm() <= 1e-4 * tensor.float().norm(), name
    assert any(edit is None for _, edit in expected["answers"])


def write(rank, base, folder):
    edited = split(base)
    assert isinstance(edited.decoder.down_proj(edited.config.layer).weight, DTensor)
    assert torch.equal(*(weight_sample(one, edited.config.layer) for one in (edited.decoder, tiny_decoder())))
    written = edited.edit(EDITS, store=folder / "written")
    assert all(each.held for each in written)
    edited.save_pretrained(folder / "saved")
    return told(edited)


def tiny_decoder():
    from corrigenda.editing.backbone.decoder import Decoder

    return Decoder(tiny_model())


@pytest.mark.parametrize("processes", [2, 3])
def test_a_model_in_parts_is_edited_asked_and_saved_as_a_whole_one_is(base, one, tmp_path, processes):
    if processes == 3:  # neither 160 FFN features nor the vocabulary go into three equal parts; six heads do
        base = tmp_path / "base"
        model = tiny_model(hidden=96, heads=6, kv_heads=3)
        model.save_pretrained(base)
        tiny_tokenizer().save_pretrained(base)
        one = EditedModel.wrap(model, tiny_tokenizer(), CONFIG)
        one.edit(EDITS)
        found = in_processes(3, write_another, base, tmp_path)
    else:
        found = in_processes(2, write, base, tmp_path)
    check_equal(found, one)
    for name in ("written", "saved"):
        alone = load(tmp_path / name, tiny_model() if processes == 2 else load_base(base)[0])
        assert str(alone.store.snapshot) == found[0]["snapshot"]
        assert [answer.text for answer in alone.answer(ASKED, 6)] == [text for text, _ in found[0]["answers"]]
        for name, tensor in alone.method.state().items():
            assert same_bits(tensor, found[1]["state"][name]), name


def write_another(rank, base, folder):
    edited = split(base)
    edited.edit(EDITS, store=folder / "written")
    edited.save_pretrained(folder / "saved")
    return told(edited)


def change(rank, base, folder):
    """Edits that one process wrote, in a model in parts: asked with room for two, undone, redone, written on."""
    edited = EditedModel.from_pretrained(base, folder, distributed_config=over_all(), resident=3)
    found = [answers(edited)]
    plain = edited.model.generate(torch.tensor([edited.prompts.encode(edited.prompts.wrap(ASKED[0]))]), max_length=60)
    found.append(plain.tolist())
    edited.write_into(folder)
    edited.undo("a")
    found.append(answers(edited))
    edited.redo("a")
    since = edited.store.history.find("a").edit  # by time: the clocks of two processes differ
    edited.edit(replace(since, id="new", prompt="Who keeps the lighthouse of Orrin?"))
    last = edited.store.history.find("new").time
    edited.undo(since=last)
    found.append(answers(edited))
    return found, str(edited.store.snapshot), edited.evaluate(EDITS[:2]).to_dict()


def test_saved_edits_are_asked_undone_redone_and_written_beside(base, one, tmp_path):
    folder = tmp_path / "edits"
    one.save_pretrained(folder)
    both = in_processes(2, change, base, folder)
    assert not isinstance(both[0], Exception), both
    assert both[0] == both[1]
    (before, _, undone, after), snapshot, scores = both[0]
    expected = answers(one)
    assert before == expected and after == expected
    assert undone[0][1] is None and undone[1:5] == expected[1:5]
    alone = load(folder, tiny_model())
    assert str(alone.store.snapshot) == snapshot and alone.store.history.find("new", False) is not None
    assert scores == one.evaluate(EDITS[:2]).to_dict()


def disagree(rank, base):
    """The second process finds other values, and other routes: what comes of it is the first one's."""
    edited = split(base)
    solve, decide = edited.method.solve, edited.method.router.decide
    if rank == 1:

        def solve_otherwise(edits):
            return [
                one._replace(record=one.record._replace(tensors={n: 2 * t for n, t in one.record.tensors.items()}))
                for one in solve(edits)
            ]

        def decide_otherwise(prompts):
            decision = decide(prompts)
            return decision._replace(route=torch.full_like(decision.route, -1))

        edited.method.solve, edited.method.router.decide = solve_otherwise, decide_otherwise
    edited.edit(EDITS)
    return told(edited)


def test_where_processes_round_otherwise_the_first_one_is_followed(base, one):
    check_equal(in_processes(2, disagree, base), one)


def unrouted(rank, base):
    edited = split(base)
    edited.edit(EDITS)
    prompt = torch.tensor([edited.prompts.encode(edited.prompts.wrap(ASKED[-1]))])
    with edited.teacher_forcing(prompt, [prompt.shape[1]], [prompt.shape[1]]), torch.no_grad():
        beside = edited.model(prompt).logits.clone()
    model = edited.detach()
    with torch.no_grad():
        return same_bits(beside, model(prompt).logits)


def test_what_no_edit_answers_keeps_its_bits(base):
    assert in_processes(2, unrouted, base) == [True, True]


def refused(rank, base, folder):
    """What each call that cannot be made says; between them the processes stay in step."""
    edited = split(base)
    edited.edit(EDITS[:1])
    (folder / "full").mkdir(exist_ok=True)
    (folder / "full" / "file").write_text("")
    dist.barrier()
    model = edited.model

    def wrapped(config, how):
        return EditedModel.wrap(load_base(base, distributed_config=how)[0], tokens, config)

    tokens = edited.tokenizer
    calls = {
        "full": lambda: edited.save_pretrained(folder / "full"),
        "group": lambda: edited.edit(EDITS[1], group=dist.group.WORLD),
        "refresh": edited.refresh,
        "method": lambda: wrapped(CONFIGS["memoir"], over_all()),
        "router": lambda: wrapped(AssociativeConfig(router="mask"), over_all()),
        "fsdp": lambda: wrapped(CONFIG, DistributedConfig(fsdp_size=2)),
        "by tokens": lambda: wrapped(CONFIG, over_all({"model.norm": "sequence_parallel"})),
        "device": lambda: load_base(base, device="cpu", distributed_config=over_all()),
    }
    said = {}
    for name, call in calls.items():
        with pytest.raises(CorrigendaError) as caught:
            call()
        said[name] = str(caught.value)
    edited.save_pretrained(folder / "edits")
    edited.detach()
    with pytest.raises(CorrigendaError, match="several shards"):
        ServedModel(model, tokens, folder / "edits")
    return said


def test_what_cannot_work_is_refused_in_every_process(base, tmp_path):
    both = in_processes(2, refused, base, tmp_path)
    assert not isinstance(both[0], Exception), both
    assert both[0] == both[1]
    for name, part in {
        "full": "is not empty",
        "group": "leave out `group`",
        "refresh": "load its edits again",
        "method": 'the method "memoir" need the whole model in one process, and this one is split over 2',
        "router": 'with router="mask" need the whole model',
        "fsdp": "it is split by fsdp",
        "by tokens": "it is split by tokens",
        "device": "leave out `device`",
    }.items():
        assert part in both[0][name], name


def differently(rank, base, folders):
    EditedModel.from_pretrained(base, folders[rank], distributed_config=over_all())


def test_processes_that_read_different_edits_say_so(base, one, tmp_path):
    for number in range(2):
        one.save_pretrained(tmp_path / str(number))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            one.undo("a") if number == 0 else one.redo("a")
    found = in_processes(2, differently, base, [tmp_path / "0", tmp_path / "1"])
    assert all("do not have the same edits" in str(error) for error in found)


def gathered(rank):
    mesh = init_device_mesh("cpu", (3,))
    parts, found = Parts(mesh.get_group()), []
    for width in (7, 9, 2, 160):
        x = torch.arange(5.0 * width).view(5, 1, width)
        found.append(torch.equal(parts.whole(distribute_tensor(x, mesh, [Shard(-1)]).to_local(), width), x))
        found.append(parts.whole(x, width) is x)
    whole = torch.randn(11, 7, generator=torch.Generator().manual_seed(0))
    rows, columns, flat = torch.tensor([10, 0, 4, 3, 4]), torch.tensor([6, 0, 1, 2, 3]), torch.tensor([76, 0, 41])
    for placement in (Shard(0), Shard(1), Replicate()):
        tensor = distribute_tensor(whole, mesh, [placement])
        found.append(torch.equal(entries(tensor, rows), whole[rows]))
        found.append(torch.equal(entries(tensor, rows, columns), whole[rows, columns]))
        found.append(torch.equal(flat_entries(tensor, flat), whole.view(-1)[flat]))
    return all(found)


def test_parts_of_any_size_are_gathered_in_order():
    assert in_processes(3, gathered) == [True] * 3
