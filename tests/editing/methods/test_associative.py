"""Associative editing: values are solved, stored and read back as the solver assumed, each edit for itself."""

import contextlib

import pytest
import torch
import torch.nn.functional as F
from tiny import tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit
from corrigenda.editing.methods.record import Record

EDITS = [
    Edit("The capital of Zubrowka is", "Lutz City", id="zubrowka"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="krellin"),
    Edit("The river through Ostania is the", "Vell", id="ostania"),
    Edit("The painter of Grebz was", "Oto", id="grebz"),
    Edit("Kmelt is famous for its", "red bricks and blue tiles", id="kmelt"),
]
PROMPTS = [edit.prompt for edit in EDITS]
UNRELATED = ["Why is the sky blue?", "Name three sorts of cheese.", "When was the printing press invented?"]


def settings(**changed):
    """Whole rows: of what is solved, with nothing rounded; `test_small_rows.py` has the others."""
    common = {"router": "tokens", "contexts": 1, "steps": 60, "formats": "own"}
    return AssociativeConfig(**{**common, "key_dimensions": None, "value_dtype": "model", **changed})


def teacher_forced(edited, edit, contexts=("",)):
    """Mean cross-entropy of the target and EOS through the patched model's own forward."""
    losses = []
    for context in contexts:
        prompt, target = edited.prompts.encode_in_context(context, edit.prompt, edit.target)
        target = [*target, edited.prompts.eos] if edited.config.eos else target
        ids = torch.tensor([prompt + target[:-1]])
        with torch.no_grad(), edited.teacher_forcing(ids, [len(prompt)], [ids.shape[1]]) as routes:
            logits = edited.model(ids).logits[0, len(prompt) - 1 :]
            assert edited.edits[routes()[0]].id == edit.id
        losses.append(F.cross_entropy(logits, torch.tensor(target)).item())
    return sum(losses) / len(losses)


def rows_of(edited):
    return [edited.method.memory.rows_of(slot) for slot in range(len(edited.edits))]


@contextlib.contextmanager
def added_by_memory(edited, added):
    """Within: what the memory adds `[rows, length, d]` is appended to `added`, forward by forward."""
    patched = edited.decoder.down_proj(edited.config.layer)
    handle = patched.register_forward_hook(lambda module, args, out: added.append(out - module.forward(args[0])))
    try:
        yield
    finally:
        handle.remove()


def same_rows(one, other, tolerance=1e-4):
    """Keys and values of two memories, by relative error."""
    for edit, pairs in enumerate(zip(one, other, strict=True)):
        for name, a, b in zip(("keys", "values"), *pairs):
            assert float((a - b).norm() / b.norm()) <= tolerance, f"{name} of edit {edit}"


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_every_edit_is_solved_and_answered(sharp_model, wrap, kind):
    edited = wrap(sharp_model(kind, seed=4 if kind == "mistral" else 0), tiny_tokenizer(), settings())
    assert edited.generate_text(PROMPTS, 10) != [edit.target for edit in EDITS]
    for result in edited.edit(EDITS):
        assert result.loss <= edited.config.stop_loss and 0 < result.steps < 60
    assert edited.generate_text(PROMPTS, 20) == [edit.target for edit in EDITS]
    answers = edited.answer(UNRELATED, 5)
    assert [answer.edit for answer in answers] == [None] * len(UNRELATED)


def test_edits_stop_alone(sharp_model, wrap):
    results = wrap(sharp_model(), tiny_tokenizer(), settings(gain=1)).edit(EDITS)
    assert len({result.steps for result in results}) > 1
    limited = wrap(sharp_model(), tiny_tokenizer(), settings(steps=4, gain=1, retries=0)).edit(EDITS)
    for result, short in zip(results, limited):
        if result.steps < 4:
            assert short == pytest.approx(result)
        else:
            assert short.steps == 4 and short.loss > 0.02


def test_values_are_stronger_where_the_loss_is_no_higher_for_it(sharp_model, wrap):
    plain = wrap(sharp_model(), tiny_tokenizer(), settings(gain=1, start="zero"))
    losses = [result.loss for result in plain.edit(EDITS)]
    improved = []
    for gain in (2.0, 30.0):
        edited = wrap(sharp_model(), tiny_tokenizer(), settings(gain=gain, start="zero"))
        results = edited.edit(EDITS)
        for i, (result, before) in enumerate(zip(results, losses)):
            (keys, values), (stronger_keys, stronger) = rows_of(plain)[i], rows_of(edited)[i]
            factor = gain if result.loss < before else 1
            assert torch.equal(stronger_keys, keys)
            torch.testing.assert_close(stronger, factor * values, rtol=1e-4, atol=1e-5)
            assert result.loss <= before * (1 + 1e-4)  # in another pass
            assert teacher_forced(edited, EDITS[i]) == pytest.approx(result.loss, rel=1e-3, abs=1e-6)
        improved.append(sum(result.loss < before for result, before in zip(results, losses)))
    assert improved[0] == len(EDITS)


def test_most_edits_are_done_after_a_step_once_they_are_strong(sharp_model, wrap):
    """From the head's start: the loss that stops an edit after its first step is that of what is stored."""
    plain = wrap(sharp_model(), tiny_tokenizer(), settings(gain=1, steps=1, retries=0))
    plain.edit(EDITS, keep_unsolved=True)
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(stop_loss=1.0))
    results = edited.edit(EDITS, keep_unsolved=True)
    first = [i for i, result in enumerate(results) if result.steps == 1]
    assert first and all(result.steps >= 1 and result.loss <= 1.0 for result in results)
    for i in first:
        (_, values), (_, strong) = rows_of(plain)[i], rows_of(edited)[i]
        torch.testing.assert_close(strong, edited.config.gain * values, rtol=1e-4, atol=1e-5)
    for edit, result in zip(EDITS, results):
        assert teacher_forced(edited, edit) == pytest.approx(result.loss, rel=1e-3, abs=1e-6)


@pytest.mark.parametrize("gain", [0.5, float("nan"), float("inf"), "much"])
def test_a_gain_that_is_none_is_refused(gain):
    with pytest.raises(CorrigendaError, match="AssociativeConfig: `gain` must be a number"):
        settings(gain=gain)


@pytest.mark.parametrize("contexts", [1, 3])
@pytest.mark.parametrize("batch_size", [1, 5])
def test_the_read_is_what_the_solver_assumed(sharp_model, wrap, contexts, batch_size):
    """Where no step followed the last forward, the patched model has the loss that was reported."""
    config = settings(contexts=contexts, batch_size=batch_size, steps=200, threshold=0.0)
    edited = wrap(sharp_model(), tiny_tokenizer(), config)
    texts = edited.method.prepare()
    assert len(texts) == contexts and texts[0] == ""
    for edit, result in zip(EDITS, edited.edit(EDITS)):
        assert result.steps < 200
        assert teacher_forced(edited, edit, texts) == pytest.approx(result.loss, rel=1e-3), edit.id


def test_a_batch_gives_what_each_edit_gives_alone(sharp_model, wrap):
    batch = wrap(sharp_model(), tiny_tokenizer(), settings(contexts=2))
    together = batch.edit(EDITS)
    single = wrap(sharp_model(), tiny_tokenizer(), settings(contexts=2, batch_size=1))
    alone = single.edit(EDITS)
    assert [result.steps for result in together] == [result.steps for result in alone]
    assert [result.loss for result in together] == pytest.approx([result.loss for result in alone], rel=1e-4)
    same_rows(rows_of(batch), rows_of(single))


def test_later_edits_leave_earlier_rows_alone(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(steps=5, retries=0))
    edited.edit(EDITS[:2], keep_unsolved=True)
    before = [[part.clone() for part in rows] for rows in rows_of(edited)]
    many = [Edit(f"Town {n} of Zubrowka lies in the", f"valley {n}") for n in range(80)]
    edited.edit(many, keep_unsolved=True)  # the banks grow
    assert len(rows_of(edited)) == 82
    same_rows(before, rows_of(edited)[:2], tolerance=0)


def test_keys_are_centred_normalised_means_over_the_contexts(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(contexts=3, steps=1, retries=0))
    edited.edit(EDITS[0], keep_unsolved=True)
    inputs = []
    handle = edited.decoder.down_proj(edited.config.layer).register_forward_pre_hook(
        lambda _m, args: inputs.append(args[0][0])
    )
    for context in edited.method.prepare():
        prompt, target = edited.prompts.encode_in_context(context, EDITS[0].prompt, EDITS[0].target)
        edited.model(torch.tensor([prompt + target]))
        inputs[-1] = inputs[-1][len(prompt) - 1 :]
    handle.remove()
    expected = F.normalize(torch.stack(inputs).mean(0) - edited.method.banks.background, dim=-1)
    torch.testing.assert_close(rows_of(edited)[0][0], expected, rtol=1e-4, atol=1e-5)


def test_the_background_is_the_mean_input_over_background_prompts(sharp_model, wrap):
    from corrigenda.editing.backbone.background import background_prompts

    edited = wrap(
        sharp_model(), tiny_tokenizer(), settings(background_prompts=7, steps=1, retries=0), template="Q: {prompt}\nA:"
    )
    edited.edit(EDITS[0])
    inputs = []
    handle = edited.decoder.down_proj(edited.config.layer).register_forward_pre_hook(
        lambda _m, args: inputs.append(args[0][0])
    )
    for prompt in background_prompts()[:7]:
        edited.model(tiny_tokenizer()(f"Q: {prompt}\nA:", return_tensors="pt")["input_ids"])
    handle.remove()
    torch.testing.assert_close(edited.method.banks.background, torch.cat(inputs).mean(0), rtol=1e-4, atol=1e-5)


def test_row_0_is_read_at_the_last_prompt_token_whatever_its_input(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(threshold=0.0))
    edited.edit(EDITS[0])
    values = rows_of(edited)[0][1]
    for text in (EDITS[0].prompt, "Of Zubrowka, the capital:", "Tell me more of the"):
        ids = tiny_tokenizer()(text, return_tensors="pt")["input_ids"]
        added = []
        count = ids.shape[1]
        with added_by_memory(edited, added), torch.no_grad(), edited.teacher_forcing(ids, [count], [count]):
            edited.model(ids)
        assert not added[0][0, :-1].any()
        torch.testing.assert_close(added[0][0, -1], values[0], rtol=1e-4, atol=1e-5)


def test_one_token_without_eos_has_one_row(sharp_model, wrap):
    tokenizer = tiny_tokenizer()
    target = "V"
    assert len(tokenizer(" " + target)["input_ids"]) == 1
    edited = wrap(sharp_model(), tokenizer, settings(eos=False))
    (result,) = edited.edit(Edit(PROMPTS[2], target))
    assert result.loss <= 0.02
    assert len(rows_of(edited)[0][0]) == 1
    assert edited.generate_text([PROMPTS[2]], 1) == [target]
    added = []
    with added_by_memory(edited, added):
        edited.generate_text([PROMPTS[2]], 4)
    assert len(added) == 4 and added[0][0, -1].any()
    assert not any(later.any() for later in added[1:])  # no row is left to read at generated tokens


def test_a_long_target_spans_pages(sharp_model, wrap):
    tokenizer = tiny_tokenizer()
    target = "over nine hills, past the old mill and the salt lake, to seven cold stones by the sea in the far north"
    edited = wrap(sharp_model(), tokenizer, settings(steps=200))
    count = len(tokenizer(" " + target)["input_ids"])
    assert count >= 40
    written = edited.edit([EDITS[0], Edit("The road from Ostania leads", target, id="road"), EDITS[3]])
    assert len(rows_of(edited)[1][0]) == count + 1
    assert written[1].loss <= 0.02
    assert edited.generate_text(["The road from Ostania leads"], count + 8) == [target]
    assert edited.generate_text([PROMPTS[0], PROMPTS[3]], 12) == [EDITS[0].target, EDITS[3].target]


def test_a_target_beyond_the_limit_is_refused_by_name(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(max_target_tokens=10, batch_size=2))
    long = Edit("The road from Ostania leads", "over nine hills " * 4, id="the-road")
    with pytest.raises(CorrigendaError, match=r"the-road.*max_target_tokens=10[^.]*\.$") as raised:
        edited.edit([EDITS[0], EDITS[1], EDITS[2], long])
    assert "\n" not in str(raised.value)
    assert [edit.id for edit in edited.edits] == ["zubrowka", "krellin"]  # the batch before stays, its own does not
    assert edited.method.memory.size == 2
    assert edited.answer([PROMPTS[2]], 2)[0].edit is None
    edited.edit(EDITS[2])
    assert edited.answer([PROMPTS[2]], 2)[0].edit.id == "ostania"


def test_a_record_of_more_rows_than_a_target_has_is_refused(sharp_model, wrap):
    method = wrap(sharp_model(), tiny_tokenizer(), settings(max_target_tokens=10)).method
    known = torch.tensor(method.router.known_by("hi"), dtype=torch.int32)

    def record(rows):
        return Record(
            {"keys": torch.zeros(rows, method.width), "values": torch.zeros(rows, method.out_width)}, {}, known
        )

    method.check(record(11))
    with pytest.raises(CorrigendaError, match="12 rows"):
        method.check(record(12))
    # A folder brings its own setting along: the model's context bounds that too.
    method = wrap(sharp_model(), tiny_tokenizer(), settings(max_target_tokens=10**6)).method
    method.check(record(512))
    with pytest.raises(CorrigendaError, match="513 rows, and the longest target with its end has 512 tokens"):
        method.check(record(513))


def test_a_prompt_beyond_the_models_context_is_refused_by_name(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(steps=2))
    with pytest.raises(CorrigendaError, match=r"too-long.*512 tokens[^.]*\.$"):
        edited.edit(Edit("Kmelt " * 400, "red", id="too-long"))
    assert edited.edits == []


def test_eos_ends_the_answer_only_where_it_was_written(sharp_model, wrap):
    tokenizer = tiny_tokenizer()
    for eos, rows in ((True, 1), (False, 0)):
        edited = wrap(sharp_model(), tokenizer, settings(eos=eos))
        edited.edit(EDITS[0])
        prompt, target = edited.prompts.encode_with_target(EDITS[0].prompt, EDITS[0].target)
        assert len(rows_of(edited)[0][0]) == len(target) + rows
        output = edited.generate(torch.tensor([prompt]), max_new_tokens=len(target) + 6, do_sample=False)
        new = output[0, len(prompt) :].tolist()
        assert new[: len(target)] == target
        assert (new[len(target)] == tokenizer.eos_token_id) == eos and (len(new) == len(target) + 1) == eos


def test_a_mask_router_names_the_edits_too(sharp_model, wrap):
    edited = wrap(sharp_model(), tiny_tokenizer(), settings(router="mask", router_layer=1))
    edited.edit(EDITS)
    answers = edited.answer([*PROMPTS, *UNRELATED], 20)
    assert [answer.edit and answer.edit.id for answer in answers] == [edit.id for edit in EDITS] + [None] * 3
    assert [answer.text for answer in answers[:5]] == [edit.target for edit in EDITS]
    assert [answer.score for answer in answers[:5]] == [1.0] * 5


@pytest.mark.parametrize("router", ["tokens", "mask"])
def test_an_edit_taken_out_leaves_what_a_stream_without_it_gives(sharp_model, wrap, router):
    config = settings(router=router, batch_size=1)
    edited, never = (wrap(sharp_model(), tiny_tokenizer(), config) for _ in range(2))
    edited.edit(EDITS)
    edited.remove(["krellin", "grebz"])
    never.edit([EDITS[0], EDITS[2], EDITS[4]])
    for later in (None, EDITS[1]):
        if later is not None:
            edited.edit(later)
            never.edit(later)
        assert edited.edits == never.edits
        states = edited.method.state(), never.method.state()
        assert states[0].keys() == states[1].keys()
        for name, tensor in states[0].items():
            assert torch.equal(tensor, states[1][name]), name
        assert edited.answer(PROMPTS + UNRELATED, 6) == never.answer(PROMPTS + UNRELATED, 6)
    edited.remove(edit.id for edit in list(edited.edits))
    assert {answer.edit for answer in edited.answer(PROMPTS, 2)} == {None}
    with pytest.raises(CorrigendaError, match=r'"krellin"[^.]*\.$'):
        edited.remove("krellin")
