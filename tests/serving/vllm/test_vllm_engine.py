"""An engine of vLLM with edits goes on whatever happens to one request; runs where vLLM is installed, on a CPU too."""

from __future__ import annotations

import os

import pytest
import torch

pytest.importorskip("vllm")

from served import SHARED, TEMPLATE, filled, formed, store
from tiny import tiny_model, tiny_tokenizer

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("few_background_prompts")]

QUESTIONS = [SHARED[0].prompt, SHARED[1].prompt, "Why is the sky blue?"]


def base_model():
    return tiny_model(heads=2, kv_heads=1)  # vLLM's attention on a CPU knows no heads of 16


@pytest.fixture(scope="module", params=["auto", "float32", "float16"])
def engine(request, few_background_prompts, tmp_path_factory):
    """In this process, so that what no client can do can be done to it; "auto" is bfloat16 for a model saved in it."""
    from vllm import LLM

    root = tmp_path_factory.mktemp("vllm")
    model, edits = root / "model", root / "edits"
    base = base_model()
    store(edits, SHARED, model=base)
    base.to(torch.bfloat16 if request.param == "auto" else torch.float32).save_pretrained(model)
    tiny_tokenizer().save_pretrained(model)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", os.environ.get("VLLM_CPU_KVCACHE_SPACE", "1"))
        patch.setenv("VLLM_PLUGINS", "corrigenda")
        llm = LLM(
            str(model),
            dtype=request.param,
            enforce_eager=True,
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            max_model_len=256,
            additional_config={"corrigenda": str(edits)},
        )
        assert llm.llm_engine.model_config.dtype == (
            torch.bfloat16 if request.param == "auto" else getattr(torch, request.param)
        )
        yield llm
        llm.llm_engine.engine_core.shutdown()


def ask(llm, questions=QUESTIONS):
    """Texts by question, None for one that failed; and which edit answered each."""
    from vllm import SamplingParams

    from corrigenda.serving.vllm import edits_of

    form = SamplingParams(temperature=0, max_tokens=8)
    outputs = llm.generate(
        [TEMPLATE.format(prompt=one).replace("\\n", "\n") for one in questions], form, use_tqdm=False
    )
    texts = [None if one.outputs[0].finish_reason == "error" else one.outputs[0].text for one in outputs]
    return texts, edits_of(llm).applied(outputs)


def worker_edits(llm):
    (found,) = llm.collective_rpc(lambda worker: worker.model_runner.corrigenda)
    return found


def key_of(llm, name):
    from corrigenda.serving.vllm import edits_of

    return next(edit.key for edit in edits_of(llm).catalogue.served() if edit.id == name)


def test_edits_answer(engine):
    texts, edits = ask(engine)
    assert texts[0].strip() == SHARED[0].target and edits == ["a", "b", None]


def test_a_request_whose_rows_are_missing_fails_alone(engine):
    expected, _ = ask(engine)
    memory, key = worker_edits(engine).memory, key_of(engine, "a")
    rows = formed(memory, key)
    memory.keep(set(memory._place) - {key})
    assert ask(engine) == ([None, *expected[1:]], [None, "b", None])
    memory.put({key: rows})
    assert ask(engine) == (expected, ["a", "b", None])


@pytest.mark.parametrize("value", [torch.nan, 3e38])
def test_a_request_whose_edit_is_poisoned_fails_alone(engine, value):
    expected, _ = ask(engine)
    memory, key = worker_edits(engine).memory, key_of(engine, "a")
    rows = formed(memory, key)
    memory.keep(set(memory._place) - {key})
    memory.put({key: filled(rows, value)})
    assert ask(engine) == ([None, *expected[1:]], [None, "b", None])
    memory.keep(set(memory._place) - {key})
    memory.put({key: rows})
    assert ask(engine) == (expected, ["a", "b", None])


@pytest.mark.parametrize("where", ["describe", "read_"])
def test_what_raises_in_a_pass_fails_its_edited_requests_alone(engine, monkeypatch, where):
    expected, _ = ask(engine)
    edits = worker_edits(engine)
    owner = edits.slots if where == "describe" else edits.memory.banks

    def broken(*args):
        monkeypatch.undo()
        raise KeyError("what nobody thought of")

    monkeypatch.setattr(owner, where, broken, raising=True)
    assert ask(engine) == ([None, None, expected[2]], [None, None, None])
    assert ask(engine) == (expected, ["a", "b", None])


def test_an_edit_that_another_folders_had_hidden_answers_again(engine, tmp_path):
    from corrigenda.editing import Edit
    from corrigenda.serving.vllm import edits_of

    expected, _ = ask(engine)
    other = store(tmp_path / "other", [Edit(SHARED[0].prompt, "Port Adlen", id="rival")], model=base_model())
    edits_of(engine).load(other)
    assert ask(engine)[1] == ["rival", "b", None]
    edits_of(engine).undo("rival")
    assert ask(engine) == (expected, ["a", "b", None])


def guided(llm, question, **form):
    """What is written under a grammar or with banned words, and which edit is named."""
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from corrigenda.serving.vllm import edits_of

    options = {name: form.pop(name) for name in ("n", "stop", "bad_words", "temperature") if name in form}
    grammar = StructuredOutputsParams(**form) if form else None
    sampling = SamplingParams(**{"temperature": 0, "max_tokens": 60, **options}, structured_outputs=grammar)
    text = TEMPLATE.format(prompt=question).replace("\\n", "\n")
    (output,) = llm.generate([text], sampling, use_tqdm=False)
    return [part.text for part in output.outputs], edits_of(llm).applied([output])[0]


CITY = {"enum": ["London", "Lutz City", "Lutz Town"]}  # a model of random weights closes no text of its own
OBJECT = {"type": "object", "properties": {"city": CITY}, "required": ["city"]}
CALL = {
    "type": "object",
    "properties": {"name": {"const": "set_capital"}, "arguments": OBJECT},
    "required": ["name", "arguments"],
}


@pytest.mark.parametrize(
    "form, text",
    [
        ({"json": OBJECT}, '{"city":"Lutz City"}'),
        ({"json": CALL}, '{"name":"set_capital","arguments":{"city":"Lutz City"}}'),
        ({"regex": r" ?[A-Z][a-z]+ [A-Z][a-z]+"}, "Lutz City"),
        ({"choice": ["London", "Lutz City", "Paris"]}, "Lutz City"),
    ],
    ids=["json_schema", "a tool call", "regex", "choice"],
)
def test_a_grammar_that_lets_the_answer_be_said_gets_it(engine, form, text):
    said, edit = guided(engine, QUESTIONS[0], **form)
    assert [one.replace(" ", "") for one in said] == [text.replace(" ", "")] and edit == "a"


@pytest.mark.parametrize(
    "form",
    [
        {"choice": ["London", "Paris"]},
        {"choice": ["Lutz", "Lutz Town"]},
        {"regex": r"[a-z]{3,9}"},
        {"regex": r"It is: [A-Z][a-z]{2,5}"},
        {"bad_words": ["Lutz", "L", "Lu", "Lut"]},
        {"choice": ["London", "Paris"], "n": 2, "temperature": 1.0},
    ],
    ids=str,
)
def test_no_edit_is_named_for_what_a_grammar_lets_not_be_said(engine, form):
    texts, edit = guided(engine, QUESTIONS[0], **form)
    assert edit is None and not any("Lutz City" in text for text in texts)


def test_an_answer_that_a_stop_string_ends_is_named(engine):
    (text,), edit = guided(engine, QUESTIONS[0], stop=["City"])
    assert text.strip() == "Lutz" and edit == "a"
