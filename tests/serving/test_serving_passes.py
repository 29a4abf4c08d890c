"""What passes read of a server: the rows of edits in its memory, and the slots of requests, in any pieces."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from cases import same_bits
from served import OF_ACME, SHARED, Served, store
from tiny import tiny_model, tiny_tokenizer
from transformers import DynamicCache

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel
from corrigenda.editing.routers.context import RoutingContext
from corrigenda.editing.store.store import EditStore
from corrigenda.serving import ServingError, Slots
from corrigenda.serving.memory import edit_key

pytestmark = pytest.mark.usefixtures("few_background_prompts")


def chunked(served, request, ids, sizes, edit):
    """Logits of a request whose tokens come in passes of these sizes, other requests' tokens not among them."""
    served.slots.start(request, len(ids), served.memory.place(edit))
    cache, past, logits = DynamicCache(), 0, []
    for size in sizes:
        served.slots.describe([request], np.array([past]), np.array([size]))
        part = torch.tensor([ids[past : past + size]])
        with torch.no_grad():
            logits.append(served.model(input_ids=part, past_key_values=cache).logits[0])
        past += size
    served.slots.end(request)
    return torch.cat(logits)


def test_chunks_do_not_change_what_an_edit_does(served_settings):
    served = Served(served_settings)
    reference = EditedModel.from_pretrained(tiny_model(), served_settings.edits[0], tokenizer=tiny_tokenizer())
    ids = served.ids("Zubrowka has which capital?")
    admitted = served.catalogue.admit(ids)
    whole = chunked(served, "r", ids, [len(ids)], admitted.key)
    with reference.teacher_forcing(torch.tensor([ids]), [len(ids)], [len(ids)]), torch.no_grad():
        expected = reference.model(input_ids=torch.tensor([ids])).logits[0]
    assert same_bits(whole, expected)
    base = chunked(served, "r", ids, [len(ids)], None)
    assert same_bits(whole[:-1], base[:-1]) and not torch.allclose(whole[-1], base[-1])
    for sizes in ([len(ids) - 1, 1], [3] * (len(ids) // 3) + [len(ids) % 3] * (len(ids) % 3 > 0), [1] * len(ids)):
        assert torch.allclose(chunked(served, "r", ids, sizes, admitted.key), whole, atol=1e-5)


def test_a_packed_pass_tells_whose_tokens_it_holds(served_settings):
    served = Served(served_settings)
    slots, context = served.slots, served.context
    slots.start("edited", 4, 1)
    slots.start("plain", 3, -1)
    slots.start("also", 2, 0)
    slots.describe(["plain", "edited", "also"], np.array([0, 2, 2]), np.array([3, 3, 1]))
    assert context.token_routes(7).tolist() == [-1, -1, -1, -1, 1, 1, 0]
    assert context.first[:7].tolist() == [False, False, True, False, True, False, False]
    slots.describe(["also", "edited"], np.array([3, 5]), np.array([1, 1]))
    assert context.token_routes(4).tolist() == [0, 1, -1, -1]
    slots.describe(["plain"], np.array([3]), np.array([1]))
    assert not context.active
    slots.describe(["also", "edited"], np.array([4, 6]), np.array([1, 1]))
    assert context.active and context.token_routes(2).tolist() == [0, 1]
    # A request that is computed anew from its start, generated tokens and all, as after preemption.
    slots.describe(["edited"], np.array([0]), np.array([7]))
    assert context.token_routes(7).tolist() == [-1, -1, -1, 1, 1, 1, 1]
    slots.keep({"plain"})
    assert len(slots) == 1 and "edited" not in slots and slots.places() == set()


def test_a_layer_that_may_be_captured_runs_in_every_pass(served_settings):
    """What a graph was captured with must be there before the first request, and when none is edited."""
    served = Served(served_settings)
    context = RoutingContext(torch.device("cpu"))
    slots = Slots(context, 4, 32, captured=True)
    assert context.active and context.token_routes(32).tolist() == [-1] * 32
    slots.start("plain", 2, -1)
    slots.describe(["plain"], np.array([0]), np.array([2]))
    assert context.active and context.token_routes(32).tolist() == [-1] * 32
    addresses = [part.data_ptr() for part in (context.slot, context.gate, context.first, context.route)]
    for name, place in zip("abc", (0, 1, 2)):
        slots.start(name, 3, place)
    slots.describe(["plain", *"abc"], np.array([2, 0, 0, 0]), np.array([1, 3, 3, 3]))
    assert context.token_routes(32).tolist() == [-1, -1, -1, 0, -1, -1, 1, -1, -1, 2] + [-1] * 22
    assert [part.data_ptr() for part in (context.slot, context.gate, context.first, context.route)] == addresses
    assert not served.context.active


def test_slots_run_out_in_one_sentence(served_settings):
    served = Served(served_settings, requests=2)
    for name in "ab":
        served.slots.start(name, 1, -1)
    with pytest.raises(CorrigendaError, match="More than 2 requests"):
        served.slots.start("c", 1, -1)
    served.slots.end("a")
    served.slots.start("c", 1, -1)


def test_undo_is_a_version_and_rows_stay_while_they_are_read(folders, tmp_path):
    folder = store(tmp_path / "own", SHARED)
    served = Served({"edits": folder})
    catalogue, memory = served.catalogue, served.memory
    before = catalogue.admit(served.ids("What does Kmelt make?"))
    place = memory.place(before.key)
    served.slots.start("pinned", 5, place)
    rows = [part.clone() for part in memory.banks.kept_rows(place) if part is not None]
    served.take(catalogue.undo("c", None, author="me"))
    assert catalogue.version == before.version + 1
    assert catalogue.admit(served.ids("What does Kmelt make?")).edit is None
    assert all(same_bits(a, b) for a, b in zip(rows, memory.banks.kept_rows(place)))
    served.slots.end("pinned")
    assert memory.keep(catalogue.keys(), served.slots.places()) == 1
    # Redone by another process and read again, it takes the place that was given back.
    writing = EditStore.open(folder, write=True)
    writing.redo(writing.selected(["c"]))
    writing.close()
    served.take(catalogue.read([(None, folder)]))
    again = catalogue.admit(served.ids("What does Kmelt make?"))
    assert again.key == before.key and memory.place(again.key) == place
    assert all(same_bits(a, b) for a, b in zip(rows, memory.banks.kept_rows(place)))


def test_rows_that_changed_under_the_server(served_settings):
    served = Served(served_settings)
    with pytest.raises(ServingError, match="changed while it was loaded"):
        served.memory.load(served_settings.edits[0], {"0" * 24: 3})
    assert len(served.memory) == len(SHARED) + len(OF_ACME)


def test_an_edit_that_does_not_fit_the_layer_is_named(served_settings):
    served = Served(served_settings)
    (folder, edits), *_ = served.catalogue.start.needed.items()
    fresh = type(served.memory)(served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32)
    fresh._take_ground = lambda ledger: None
    fresh.widths = (fresh.widths[0], 63)
    with pytest.raises(ServingError, match=r'^Edit "a" of .*shared.* cannot be used: its tensor "values" has') as error:
        fresh.load(folder, edits)
    assert error.value.status == 422 and len(fresh) == 0


def test_a_fixed_memory_says_when_it_is_full(served_settings):
    served = Served(served_settings)
    fresh = type(served.memory)(served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32)
    fresh.reserve(64)
    fresh.banks.fix()
    (banks,) = fresh.banks
    address = banks._keys.data_ptr()
    (folder, edits), *_ = served.catalogue.start.needed.items()
    fresh.load(folder, edits)
    record = banks.kept_rows(0)
    while banks.has_room([8]):
        banks.put(*record)
    other = served.catalogue.start.needed[served_settings.root / "acme"]
    with pytest.raises(ServingError, match="no room for 2 more edits") as error:
        fresh.load(served_settings.root / "acme", other)
    assert error.value.status == 507 and banks._keys.data_ptr() == address
    assert all(key not in fresh._place for key in other)


@pytest.mark.parametrize("fixed", [False, True])
def test_an_edit_that_is_longer_than_the_server_takes_is_named(served_settings, tmp_path, fixed):
    """However long a target the store's own setting allows: every other edit would pay for the table's width."""
    served = Served(served_settings)

    def memory(*rows):
        built = type(served.memory)(
            served.catalogue.config, served.memory.widths, torch.device("cpu"), torch.float32, *rows
        )
        built.reserve(64)
        if fixed:
            built.banks.fix()
        return built

    config = AssociativeConfig(router="tokens", contexts=1, steps=1, retries=0, max_target_tokens=2000)
    writer = EditedModel.wrap(tiny_model(max_positions=1024), tiny_tokenizer(), config)
    endless, short = Edit("What is endless?", "on " * 520, id="endless"), Edit("What is short?", "this", id="short")
    writer.edit([endless, short], keep_unsolved=True)
    writer.save_pretrained(tmp_path / "long")
    history = EditStore.open(tmp_path / "long").history
    edits = {edit_key(stored): seq for seq, stored in history.edits.items()}
    count = len(writer.method.memory.rows_of(0)[0])
    assert count > 512
    fresh = memory()
    (banks,) = fresh.banks
    width = banks._pages.shape[1]
    with pytest.raises(ServingError, match=rf'Edit "endless" of .*long.* has {count} rows, .* at most 512') as error:
        fresh.load(tmp_path / "long", edits)
    assert error.value.status == 507 and len(fresh) == 0 and banks._pages.shape[1] == width
    assert memory(count).load(tmp_path / "long", edits) == 2
