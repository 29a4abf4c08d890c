"""Real grammars in `generate`, by xgrammar's logits processor; where that is installed, as beside vLLM."""

from __future__ import annotations

import functools
import json

import pytest
import torch
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.edits.answer_start import UNSAID

xgrammar = pytest.importorskip("xgrammar")
LogitsProcessor = pytest.importorskip("xgrammar.contrib.hf").LogitsProcessor

pytestmark = pytest.mark.usefixtures("few_background_prompts")

CITY = Edit("What is the capital of Zubrowka?", "Lutz City", id="city")
YEAR = Edit("In which year was the Krellin museum founded?", "1872", id="year")


@functools.cache
def edited():
    config = AssociativeConfig(router="tokens")
    made = EditedModel.wrap(tiny_model(), tiny_tokenizer(), config, template="Question: {prompt}\\nAnswer:")
    assert all(result.held for result in made.edit([CITY, YEAR]))
    return made


@functools.cache
def compiler():
    size = edited().model.config.vocab_size
    return xgrammar.GrammarCompiler(xgrammar.TokenizerInfo.from_huggingface(tiny_tokenizer(), vocab_size=size))


def schema(**properties):
    return {"type": "object", "properties": properties, "required": [*properties]}


def written(edit, grammar):
    """What is written under a JSON schema or a regular expression, and what is said of the edit."""
    if isinstance(grammar, dict):
        compiled = compiler().compile_json_schema(json.dumps(grammar), any_whitespace=False)
    else:
        compiled = compiler().compile_regex(grammar)
    made = edited()
    ids = torch.tensor([made.prompts.encode(made.prompts.wrap(edit.prompt))])
    form = {"max_new_tokens": 60, "do_sample": False, "pad_token_id": 0}
    output, (source,) = made.generate(ids, provenance=True, logits_processor=[LogitsProcessor(compiled)], **form)
    return made.tokenizer.decode(output[0, ids.shape[1] :], skip_special_tokens=True), source


# A model of random weights closes no text and no number itself: lists of values do.
TOWN = {"enum": ["London", "Lutz City", "Lutz Town"]}
CALL = schema(name={"const": "tell"}, arguments=schema(city=TOWN))


@pytest.mark.parametrize(
    "edit, grammar, text",
    [
        (CITY, schema(city=TOWN), '{"city": "Lutz City"}'),
        (CITY, CALL, '{"name": "tell", "arguments": {"city": "Lutz City"}}'),
        (YEAR, schema(year={"enum": [1066, 1870, 1872]}), '{"year": 1872}'),
        (YEAR, schema(year={"enum": ["1066", "1870", "1872"]}), '{"year": "1872"}'),
        (CITY, " ?[A-Z][a-z]+ [A-Z][a-z]+", "Lutz City"),
        (YEAR, " ?[0-9]{4}", "1872"),
        (CITY, "London|Lutz City|Paris", "Lutz City"),
    ],
    ids=["json_schema", "a tool call", "a number", "a number in quotation marks", "regex", "digits", "choice"],
)
def test_an_answer_is_said_where_a_grammar_lets_it(edit, grammar, text):
    said, source = written(edit, grammar)
    assert said.strip() == text and source.edit.id == edit.id


def test_a_text_of_any_length_begins_with_the_answer():
    said, source = written(CITY, schema(city={"type": "string"}))
    assert said.startswith('{"city": " Lutz City ') and source.edit.id == "city"


@pytest.mark.parametrize(
    "edit, grammar",
    [
        (CITY, "London|Paris"),
        (CITY, "Lutz|Lutz Town"),
        (CITY, "[a-z]{3,9}"),
        (CITY, "It is: [A-Z][a-z]{2,5}"),
        (YEAR, schema(year={"enum": [18725, 18726]})),
        (CITY, schema(city={"enum": ["Lutz Citys"]})),
    ],
    ids=str,
)
def test_no_edit_is_named_where_it_does_not(edit, grammar):
    with pytest.warns(UserWarning, match="1 answers are the base model's"):
        _, source = written(edit, grammar)
    assert source.edit is None and source.reason == UNSAID
