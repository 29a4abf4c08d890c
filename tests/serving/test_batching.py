"""A served model in transformers' continuous batching: every sequence is answered as if it had come alone."""

from __future__ import annotations

import pytest
import torch
from batched import EDITED, IDS, NEW, PLAIN, PROMPTS, Running, batch, config, tokens
from cases import same_bits
from tiny import tiny_model
from transformers import ContinuousBatchingConfig, GenerationConfig
from transformers.generation.continuous_batching import cache
from transformers.generation.continuous_batching.requests import RequestState

from corrigenda.editing import CorrigendaError
from corrigenda.serving import ServingError, continuous

pytestmark = pytest.mark.usefixtures("few_background_prompts")


# The same answer however requests are packed


@pytest.mark.parametrize(
    "settings",
    [
        {"max_batch_tokens": 512},
        {"max_batch_tokens": 7},
        {"max_batch_tokens": 13, "page_size": 4},
        {"max_batch_tokens": 16, "scheduler_type": "prefill_first"},
        {"allow_block_sharing": False},
        {"max_requests_per_batch": 2, "max_batch_tokens": 16},
    ],
    ids=str,
)
def test_a_mixed_batch_answers_as_each_prompt_alone(serve, folders, alone, settings):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    expected = alone(rows)
    base = alone(rows, edits=None)
    assert [a == b for a, b in zip(expected, base)] == [edit is None for edit in IDS]
    outputs, found = served.generate_batch(
        rows, max_new_tokens=NEW, provenance=True, continuous_batching_config=config(**settings)
    )
    assert tokens(outputs) == expected
    assert [one.edit and one.edit.id for one in found.values()] == IDS and list(found) == list(outputs)
    assert all((one.margin >= 0) == (one.edit is not None) for one in found.values())


def test_transformers_own_generate_batch_is_edited_too_and_plain_forwards_are_not(serve, folders, alone):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    assert tokens(served.model.generate_batch(rows, max_new_tokens=NEW, continuous_batching_config=config())) == alone(
        rows
    )
    base = tiny_model()
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row])
            assert same_bits(served.model(ids).logits, base(ids).logits)
            assert torch.equal(served.model.generate(ids, max_new_tokens=4), base.generate(ids, max_new_tokens=4))


@pytest.mark.parametrize(
    ("given", "blocks", "tokens_a_pass"),
    [
        ({}, 64, 512),
        ({"page_size": 100}, 164, 512),
        ({"num_blocks": 9}, 9, 512),
        ({"max_batch_tokens": 40}, 64, 40),
        ({"max_memory_percent": 0.001}, None, 512),
    ],
    ids=str,
)
def test_without_sizes_a_cpus_memory_is_left_alone(serve, folders, alone, given, blocks, tokens_a_pass):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS[:2])
    options = {"continuous_batching_config": ContinuousBatchingConfig(**given)} if given else {}
    manager = served.model.init_continuous_batching(GenerationConfig(max_new_tokens=NEW), **options)
    found = manager.continuous_batching_config
    assert (found.num_blocks, found.max_batch_tokens) == (blocks, tokens_a_pass)
    assert tokens(served.generate_batch(rows, max_new_tokens=NEW, **options)) == alone(rows)


def shared_prefix(served, length=48):
    """Prompts that begin with the same tokens, the template's question being the last thing in them."""
    filler = (served.tokenizer("All of this is said before anything is asked. " * 9)["input_ids"])[:length]
    return [filler + row for row in served.encode(PROMPTS)]


@pytest.mark.parametrize("budget", [16, 512])
def test_prompts_that_share_blocks(serve, folders, alone, budget, monkeypatch):
    served = serve(folders / "shared")
    rows = shared_prefix(served)
    hits = []
    search = cache.PagedAttentionCache.search_prefix_match
    monkeypatch.setattr(
        cache.PagedAttentionCache, "search_prefix_match", lambda *given: hits.append(search(*given)) or hits[-1]
    )
    running = Running(served, max_batch_tokens=budget)
    expected = alone(rows)
    assert [running.ask(row) for row in rows] == expected
    assert sum(hit >= 48 for hit in hits) == len(rows) - 1
    # Asked again, all but a prompt's last block is found, an edited one's too.
    hits.clear()
    assert [running.ask(row) for row in rows] == expected
    assert all(hit >= (len(row) - 1) // 8 * 8 for hit, row in zip(hits, rows))
    names = running.manager.add_requests(rows, max_new_tokens=NEW)
    assert [running.result(name) for name in names] == expected


@pytest.mark.parametrize("guarded", [True, False])
def test_an_edited_answer_is_read_again_as_the_base_model_reads_it(serve, folders, alone, guarded, monkeypatch):
    """The next turn of a conversation repeats the answer, whose keys and values were made under the edit."""
    if not guarded:
        monkeypatch.setattr(
            continuous.BatchedRequests,
            "_blocks_to_share",
            lambda self, original, *given: original(*given),
            raising=True,
        )
    served = serve(folders / "shared")
    running = Running(served, page_size=4)
    differ = 0
    for prompt in EDITED:
        (first,) = served.encode([prompt])
        answer = running.ask(first)
        assert [answer] == alone([first])
        for more in PLAIN:
            second = first + answer + served.tokenizer("\n")["input_ids"] + served.encode([more])[0]
            differ += [running.ask(second)] != alone([second])
    assert differ == 0 if guarded else differ > 0


def test_an_unedited_answer_is_shared_with_the_next_turn(serve, folders, alone):
    served = serve(folders / "shared")
    running = Running(served, page_size=4)
    (first,) = served.encode([PLAIN[1]])
    answer = running.ask(first)
    second = first + answer + served.encode([EDITED[0]])[0]
    allocator = next(iter(running.manager.batch_processor.cache.cache_allocators.values()))
    assert len(allocator.match_prefix_blocks(second)) == (len(first) + len(answer) - 1) // 4
    assert [running.ask(second)] == alone([second])


# Requests that fork, lose their cache, or are more than the batch holds


@pytest.mark.parametrize("blocks", [128, 16])
def test_forks_are_answered_as_their_parents(serve, folders, alone, blocks):
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    generation = GenerationConfig(max_new_tokens=NEW, do_sample=False, eos_token_id=2)
    generation.num_return_sequences = 4  # which the constructor refuses of a greedy one
    outputs = batch(served, rows, generation=generation, num_blocks=blocks, max_requests_per_batch=5)
    assert tokens(outputs) == [answer for answer in alone(rows) for _ in range(4)]


def test_a_fork_that_outlives_its_parent_keeps_its_rows(serve, folders, alone, monkeypatch):
    describe, forks = continuous.BatchedRequests._describe, set()

    def checked(self, *given):
        describe(self, *given)
        for name, state in self._scheduler.active_requests.items():
            assert not state._corrigenda.ended
            if "__child#" in name and name.partition("__child#")[0] not in self._scheduler.active_requests:
                forks.add(name)

    monkeypatch.setattr(continuous.BatchedRequests, "_describe", checked)
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS[:1])
    generation = GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=2)
    generation.num_return_sequences = 4
    outputs = batch(served, rows, new=1, generation=generation, max_requests_per_batch=1)
    assert forks and tokens(outputs) == alone(rows, 1) * 4


def test_requests_that_lose_their_cache_keep_their_edit(serve, folders, alone, monkeypatch):
    resets = []
    renew = RequestState.create_equivalent_initial_request
    monkeypatch.setattr(
        RequestState, "create_equivalent_initial_request", lambda self: resets.append(self.request_id) or renew(self)
    )
    served = serve(folders / "shared")
    rows = served.encode(PROMPTS)
    outputs = batch(served, rows, new=40, num_blocks=14, safety_margin=0.0)
    assert resets and tokens(outputs) == alone(rows, 40)


def test_a_renewed_request_does_not_take_an_unedited_ones_blocks_for_its_answer(serve, folders, alone):
    """What another request read in its prompt are the same tokens, but not the same keys and values."""
    served = serve(folders / "shared")
    running = Running(served, page_size=4)
    (row,) = served.encode(EDITED[:1])
    (answer,) = alone([row])
    running.ask(row + answer + served.encode(PLAIN[:1])[0])
    requests = running.manager._corrigenda
    found = []
    requests._requests["renewed"] = served.requests.admit("renewed", row, None)
    found.append(running.manager.batch_processor.cache.search_prefix_match("renewed", row + answer))
    assert found == [(len(row) - 1) // 4 * 4]


# Tenants


def test_each_request_is_its_tenants(serve, folders, alone):
    served = serve({"edits": folders / "shared", "tenants": {"acme": folders / "acme"}})
    rows = served.encode(["Zubrowka has which capital?", "Who leads Vantrello Foods?"])
    owners = ["acme", None, "acme", None]
    outputs, found = served.generate_batch(
        [rows[0], rows[0], rows[1], rows[1]],
        tenants=owners,
        provenance=True,
        max_new_tokens=NEW,
        continuous_batching_config=config(),
    )
    own, shared = alone(rows, edits="acme"), alone(rows)
    assert tokens(outputs) == [own[0], shared[0], own[1], shared[1]]
    assert [one.tenant for one in found.values()] == owners
    running = Running(served)
    assert running.ask(rows[0], tenant="acme") == own[0]
    assert running.ask(rows[0]) == shared[0]
    with pytest.raises(ServingError, match='no tenant "other"'):
        running.ask(rows[0], tenant="other")
    with pytest.raises(ServingError, match='no tenant "other"'):
        served.generate_batch(rows, tenants="other")
    with pytest.raises(CorrigendaError, match="2 prompts and 1 tenants"):
        served.generate_batch(rows, tenants=["acme"])
