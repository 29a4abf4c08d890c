"""Where an edit's answer begins: after its prompt, after what of it is written, or after something else."""

import functools

import pytest
import torch
from tiny import END, START, tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, Edit, EditedModel
from corrigenda.editing.edits.answer_start import (
    AFTER_COLON,
    AFTER_THOUGHT,
    LEFT,
    QUOTED,
    SAID,
    THINKING,
    WAITS,
    AnswerStarts,
)
from corrigenda.editing.edits.prompts import PromptFormat
from corrigenda.editing.edits.spelling import COLON, OPENED, QUOTE, SPACE, WORD
from corrigenda.editing.routers.progress import AnswerProgress

pytestmark = pytest.mark.usefixtures("few_background_prompts")

CITY = Edit("What is the capital of Zubrowka?", "Lutz City on Lake", id="city")
YEAR = Edit("In which year was the Krellin museum founded?", "1872", id="year")
SETTINGS = AssociativeConfig(router="tokens", contexts=1, steps=60)
TEMPLATE = "Question: {prompt}\\nAnswer:"
THINKS = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
PIECES = ('{"', '":', ' "', '"}', '": "', '"answer"', "<think>", "</think>")


@functools.cache
def tokenizer():
    """Of the tests', with the tokens of JSON and think blocks that real ones have."""
    made = tiny_tokenizer(texts=("Lutz City on Lake", "Cape Town", "1872"))
    made.add_tokens([*PIECES[:5], *PIECES[6:]])
    made.chat_template = THINKS
    return made


def model():
    base = tiny_model()
    base.resize_token_embeddings(len(tokenizer()), mean_resizing=False)
    with torch.no_grad():
        base.model.norm.weight *= 4
    return base


@functools.cache
def edited(chat=False):
    options = {"chat_template": True} if chat else {"template": TEMPLATE}
    made = EditedModel.wrap(model(), tokenizer(), SETTINGS, **options)
    written = made.edit([CITY, YEAR])
    assert all(result.held for result in written)
    return made


def continued(made, text, new=12, **options):
    """What follows a text as it stands, special tokens too; and the edit that is named for it."""
    ids = torch.tensor([tokenizer()(text)["input_ids"]])
    options = {"max_new_tokens": new, "do_sample": False, "pad_token_id": 0, **options}
    output, (source,) = made.generate(ids, provenance=True, **options)
    return tokenizer().decode(output[0, ids.shape[1] :]), source


def starts(prompts=None):
    return AnswerStarts(prompts or PromptFormat(tokenizer(), TEMPLATE), ends=True)


def plan(text, edit=CITY, prompts=None):
    found = starts(prompts)
    return found.plan(tokenizer()(text)["input_ids"], edit), found.spelling(edit.prompt, edit.target)


# Spellings


def test_every_spelling_of_a_target_leads_to_its_end():
    spelling = starts().spelling(CITY.prompt, CITY.target)
    arcs = {(node, token): to for node, token, to in spelling.arcs}
    assert len(arcs) == len(spelling.arcs)

    def walk(tokens):
        node = 0
        for token in tokens:
            node = arcs.get((node, token))
        return node

    target = CITY.target
    for text in (f" {target}", target):
        assert walk(tokenizer()(text)["input_ids"]) == spelling.length
    letters = [tokenizer()(letter)["input_ids"] for letter in "Lutz"]
    assert walk([token for letter in letters for token in letter]) in spelling.nodes.values()
    assert walk(tokenizer()(" Lutz")["input_ids"]) == spelling.nodes[len(" Lutz")]
    assert (0, tokenizer()(" x")["input_ids"][0]) not in arcs


def test_kinds_of_tokens():
    prompts = PromptFormat(tokenizer())
    kinds = prompts.vocabulary.kinds

    def kind(text):
        (token,) = tokenizer()(text)["input_ids"]
        return int(kinds[token])

    assert kind(":") & COLON and kind('":') & COLON and kind('"') == QUOTE == kind(' "')
    assert kind('": "') == OPENED and kind("\n") == SPACE and kind('{"') == 0 and kind("a") == WORD


# Where a prompt leaves the answer


@pytest.mark.parametrize(
    "written, state",
    [
        ("", 0),
        (" Lutz City on Lake", "end"),
        (" The capital is", 0),
        (" {", WAITS),
        (' {"answer', WAITS),
        (' {"answer": ', AFTER_COLON),
        (' {"answer": "', QUOTED),
        (' ["', QUOTED),
        ("<think>\nHm", THINKING),
        ("<think>\nHm</think>\n\n", 0),
        (f" {START}tool\n", LEFT),
    ],
)
def test_what_a_prompt_has_of_the_answer(written, state):
    found, spelling = plan(f"Question: {CITY.prompt}\nAnswer:{written}")
    assert found.start == (spelling.length if state == "end" else state)


@pytest.mark.parametrize("form", ["Question: {}\nAnswer:{}", "{}{}", f"{START}user\n{{}}{END}\n{START}assistant\n{{}}"])
def test_a_part_of_the_answer_is_known_after_any_closing(form):
    spelling = starts().spelling(CITY.prompt, CITY.target)
    for said, node in spelling.nodes.items():
        if 0 < node < spelling.length:
            found, _ = plan(form.format(CITY.prompt, spelling.text[:said]))
            assert found.start == node


def test_an_edits_own_prompt_may_end_as_its_answer_begins():
    own = Edit("The lake of Lutz is named Lutz", "Lutz City", id="own")
    assert plan(own.prompt, own, PromptFormat(tokenizer()))[0].start == 0
    assert plan("Is the capital of Zubrowka Lutz City on Lake", prompts=PromptFormat(tokenizer()))[0].start == 0


@pytest.mark.parametrize("prompt", ["{", 'Fill in: {"capital of Zubrowka": "', "The capital of Zubrowka: ["])
@pytest.mark.parametrize("template", [None, TEMPLATE])
def test_an_edits_own_prompt_may_end_as_json_does(prompt, template):
    own = Edit(prompt, "Lutz City", id="own")
    found = EditedModel.wrap(model(), tokenizer(), SETTINGS, template=template)
    found.edit(own)
    assert found.generate_text([prompt]) == ["Lutz City"]
    found.detach()


@pytest.mark.parametrize(
    "written, words",
    [
        ("", None),
        (" ", None),
        (" Lutz City", 'has "Lutz City" of the answer, which goes on from there'),
        (' {"answer": "Lutz', 'has "Lutz" of the answer, which goes on from there'),
        (" {", "has begun something else, JSON say: the answer waits for its place in it"),
        ("<think>Hm", "is in the middle of a think block: the answer begins after it"),
        (f" {START}tool\n", "closes as none does that the edit was learnt in: the base model answers"),
    ],
)
def test_what_is_said_of_a_prompt(written, words):
    ids = tokenizer()(f"Question: {CITY.prompt}\nAnswer:{written}")["input_ids"]
    assert starts().in_words(ids, CITY) == words


# In `generate`


@pytest.mark.parametrize("chat", [False, True])
def test_a_prefill_at_every_token_is_continued(chat):
    made = edited(chat)
    prompt, labels = made.prompts.encode_with_target(CITY.prompt, CITY.target)
    for count in range(len(labels) + 1):
        ids = torch.tensor([prompt + labels[:count]])
        output, (source,) = made.generate(ids, max_new_tokens=12, do_sample=False, pad_token_id=0, provenance=True)
        assert output[0, ids.shape[1] :].tolist() == [*labels[count:], made.prompts.eos]
        assert source.edit.id == "city"


def test_prefills_side_by_side_are_those_alone():
    made = edited()
    prompt, labels = made.prompts.encode_with_target(CITY.prompt, CITY.target)
    rows = [prompt + labels[:count] for count in range(len(labels))]
    answers = made.answer_ids(rows, [12] * len(rows))
    assert [answer.text for answer in answers] == [
        made.tokenizer.decode(labels[count:]).strip() for count in range(len(labels))
    ]


def test_a_message_that_is_to_be_continued():
    made = edited(chat=True)
    turns = [{"role": "user", "content": CITY.prompt}, {"role": "assistant", "content": "Lutz City"}]
    text = tokenizer().apply_chat_template(turns, tokenize=False, continue_final_message=True)
    new, source = continued(made, text)
    assert new == f" on Lake{END}" and source.edit.id == "city"


def test_every_closing_of_the_template_is_learnt():
    made = edited(chat=True)
    assert len(made.prompts.chat_closings) == 2
    for thinking in (True, False):
        turns = [{"role": "user", "content": CITY.prompt}]
        text = tokenizer().apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        assert text.endswith("</think>\n\n") is not thinking
        new, source = continued(made, text)
        assert new.strip() == f"{CITY.target}{END}" and source.edit.id == "city"


def forced(text):
    """A logits processor that has these tokens written first, as guided decoding would."""
    tokens = tokenizer()(text)["input_ids"]

    class Forced:
        def __init__(self, start):
            self.start = start

        def __call__(self, ids, scores):
            at = ids.shape[1] - self.start
            if at < len(tokens):
                scores = torch.full_like(scores, -torch.inf)
                scores[:, tokens[at]] = 0
            return scores

    return Forced, len(tokens)


@pytest.mark.parametrize("begins", ['{"answer": "', '{"a":"', "<think>Hm, let me see</think>\n\n", "\n"])
def test_the_answer_waits_while_something_else_is_written(begins):
    made = edited(chat=True)
    text = made.prompts.wrap(CITY.prompt)
    kind, count = forced(begins)
    length = len(tokenizer()(text)["input_ids"])
    new, source = continued(made, text, new=count + 8, logits_processor=[kind(length)])
    assert new.startswith(begins)
    assert new[len(begins) :].strip().startswith(CITY.target) and source.edit.id == "city"


def test_a_number_needs_no_quotation_marks():
    made = edited()
    text = made.prompts.wrap(YEAR.prompt)
    kind, count = forced('{"year":')
    length = len(tokenizer()(text)["input_ids"])
    new, source = continued(made, text, new=count + 6, logits_processor=[kind(length)])
    assert new.removeprefix('{"year":').strip().startswith("1872") and source.edit.id == "year"


def test_a_closing_that_was_not_learnt_leaves_the_base_model_and_says_so():
    made, base = edited(chat=True), model()
    text = made.prompts.wrap(CITY.prompt) + f"{START}final\n"
    ids = torch.tensor([tokenizer()(text)["input_ids"]])
    with pytest.warns(UserWarning, match="1 answers are the base model's"):
        output, (source,) = made.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0, provenance=True)
    assert source.edit is None and source.nearest.id == "city"
    assert output.tolist() == base.generate(ids, max_new_tokens=6, do_sample=False, pad_token_id=0).tolist()


def test_a_banned_first_token_leaves_the_base_model_and_says_so():
    made, base = edited(), model()
    text = made.prompts.wrap(CITY.prompt)
    spelling = starts().spelling(CITY.prompt, CITY.target)
    banned = [[token] for node, token, _ in spelling.arcs if node == 0]
    ids = torch.tensor([tokenizer()(text)["input_ids"]])
    with pytest.warns(UserWarning, match="1 answers are the base model's"):
        new, source = continued(made, text, bad_words_ids=banned)
    assert source.edit is None and source.nearest.id == "city" and "begin" in source.reason
    # From the second token on, nothing but the base model: the same as it says after that first token.
    first = tokenizer()(new)["input_ids"][:1]
    whole = torch.cat([ids, torch.tensor([first])], 1)
    expected = base.generate(whole, max_new_tokens=4, do_sample=False, pad_token_id=0, bad_words_ids=banned)
    output = made.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0, bad_words_ids=banned)
    assert output[0, ids.shape[1] + 1 :].tolist() == expected[0, whole.shape[1] :].tolist()


# The states, one token after another


@functools.cache
def oracle(start, text, edit=CITY):
    """The states that a text leads to from `start`, by rules in plain Python."""
    found = starts()
    spelling, kinds = found.spelling(edit.prompt, edit.target), found.prompts.vocabulary.kinds
    arcs = {(node, token): to for node, token, to in spelling.arcs}
    states = [start]
    for token in tokenizer()(text)["input_ids"]:
        before, said = states[-1], tokenizer().decode([token])
        node = before - QUOTED if before >= QUOTED else before
        if (node, token) in arcs:
            state = arcs[node, token] + (QUOTED if before >= QUOTED else 0)
        elif said == "</think>":
            state = AFTER_THOUGHT
        elif before == THINKING or (before == 0 and said == "<think>"):
            state = THINKING
        elif before == SAID or node == spelling.length:
            state = LEFT if before != SAID and said[0].isalnum() else SAID
        elif before == LEFT or node > 0:
            state = LEFT
        elif said.isspace() and before in (0, QUOTED, AFTER_COLON):
            state = before
        elif said.isspace() and before == AFTER_THOUGHT:
            state = 0
        elif kinds[token] & OPENED or (kinds[token] & QUOTE and before == AFTER_COLON):
            state = QUOTED
        else:
            state = AFTER_COLON if kinds[token] & COLON else WAITS
        states.append(state)
    return states


TEXTS = [
    " Lutz City on Lake",
    "Lutz City on Lake",
    " Lutz Town",
    '{"answer": "Lutz City on Lake"}',
    '{"a": 3, "b":"Lutz City on Lake", "c": "Lutz"}',
    '<think>It is: "Lutz"</think>\n\nLutz City',
    "The answer: Lutz",
    "\nLutz City on Lake and more",
    " Lutz City on Lakeside",
    '{"a": "Lutz City on Lakes"}',
]


@pytest.mark.parametrize("pieces", [1, 3, 100])
def test_states_follow_the_tokens_in_passes_of_any_size(pieces):
    plans = [plan(f"Question: {CITY.prompt}\nAnswer:")[0]] * len(TEXTS)
    rows = [tokenizer()(text)["input_ids"] for text in TEXTS]
    progress = AnswerProgress(PromptFormat(tokenizer()).vocabulary.kinds, 2, torch.device("cpu"))
    for slot, one in enumerate(plans, start=1):
        progress.begin(slot, one, last=4)
    import numpy as np

    longest, length = max(map(len, rows)), plans[0].length
    gate, row = torch.ones(9 * 200, dtype=torch.bool), torch.full((9 * 200,), -1, dtype=torch.int32)
    read = [[] for _ in rows]
    slots = np.arange(1, len(rows) + 1)
    ids = [[0] * 5 + one + [0] * (longest - len(one)) for one in rows]
    for past in range(0, longest + 5, pieces):
        taken = [one[past : past + pieces] for one in ids]
        count = len(taken[0])
        gate[:], row[:] = True, -1
        tokens = torch.tensor([token for part in taken for token in part])
        progress.advance(tokens, slots, np.full(len(rows), past), np.full(len(rows), count), gate, row)
        for i, of_row in enumerate(row[: count * len(rows)].view(len(rows), count).tolist()):
            read[i] += of_row
    for text, tokens, rows_read in zip(TEXTS, rows, read):
        states = oracle(0, text)
        expected = []
        for state in states:
            node = state - QUOTED if state >= QUOTED else state
            readable = 0 <= node < length or (node == length and state < QUOTED)
            expected.append(node if readable else -1)
        assert rows_read[:4] == [-1] * 4  # before the prompt's last token nobody is read
        assert rows_read[4 : 5 + len(tokens)] == expected, text


def test_a_pass_that_is_taken_back_leaves_no_trace():
    import numpy as np

    progress = AnswerProgress(PromptFormat(tokenizer()).vocabulary.kinds, 2, torch.device("cpu"))
    one, spelling = plan(f"Question: {CITY.prompt}\nAnswer:")
    labels = tokenizer()(f" {CITY.target}")["input_ids"]
    progress.begin(1, one, last=2)
    gate, row = torch.ones(16, dtype=torch.bool), torch.full((16,), -1, dtype=torch.int32)

    def taken(tokens, past):
        progress.advance(torch.tensor(tokens), np.array([1]), np.array([past]), np.array([len(tokens)]), gate, row)
        return row[: len(tokens)].tolist()

    assert taken([5, 6, 7, labels[0]], 0) == [-1, -1, 0, 1]
    assert taken([labels[1], 9, 9], 4) == [2, -1, -1]  # two tokens that were guessed wrong
    assert taken([labels[2]], 5) == [3] and spelling.length >= 3
    assert progress.left({1: 5}) == [] and progress.left({1: 6}) == [1]
