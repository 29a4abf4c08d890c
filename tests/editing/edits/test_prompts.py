"""What of a formatted prompt was asked: the text in the template's slot, or of a chat's last user turn."""

import functools
import string

import pytest
from cases import property_test
from hypothesis import assume, example, given
from hypothesis import strategies as st
from tiny import END, START, tiny_tokenizer
from tokenizers.processors import TemplateProcessing

from corrigenda.editing.edits.prompts import PromptFormat
from corrigenda.editing.errors import CorrigendaError

tokenizer = functools.cache(tiny_tokenizer)

TEMPLATES = [
    "{prompt}",
    "Question: {prompt}\nAnswer:",
    "Q: {prompt}",
    "{prompt}\nA:",
    "[INST] {prompt} [/INST]",
    "  {prompt}  ",
    "Context: none.\nQuestion:\n{prompt}\n\nAnswer (in short): ",
]
CHATS = [[], [("What is two and two?", "Four."), ("And three?", "It is six. Question: why?")]]
CHARACTERS = string.ascii_letters + string.digits + " ?!.,:;'\"()-éüß日Ω\n"
prompts = st.text(st.sampled_from(CHARACTERS), min_size=1, max_size=60)


def plain(text):
    return " ".join(text.split())


@property_test
@given(st.sampled_from(TEMPLATES), prompts)
@example("Question: {prompt}\nAnswer:", "What is an Answer:")
@example("Question: {prompt}\nAnswer:", "Answer:")
@example("{prompt}\nA:", "Which letter comes first? A:")
@example("Question: {prompt}\nAnswer:", " two  spaces\nand a line ")
def test_question_inverts_a_template(template, prompt):
    before = template.split("{prompt}")[0]
    assume(prompt.strip() and not (before.strip() and before.strip() in prompt))
    form = PromptFormat(tokenizer(), template)
    assert plain(form.question(form.encode(form.wrap(prompt)))) == plain(prompt)


@property_test
@given(st.sampled_from(TEMPLATES[1:3]), prompts, prompts)
def test_question_leaves_out_what_came_before_the_template(template, context, prompt):
    before = template.split("{prompt}")[0].strip()
    assume(prompt.strip() and context.strip() and before not in prompt)
    form = PromptFormat(tokenizer(), template)
    assert plain(form.question(form.encode(context + "\n" + form.wrap(prompt)))) == plain(prompt)


def chat(form, turns, prompt):
    """Ids of a conversation that ends in `prompt`, as the format would put it."""
    messages = []
    for asked, answered in turns:
        messages += [{"role": "user", "content": asked}, {"role": "assistant", "content": answered}]
    messages.append({"role": "user", "content": form.template.wrap(prompt)})
    text = form.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    return form.tokenizer(text, add_special_tokens=False)["input_ids"]


def check_chat(tokenizer, template, turns, prompt):
    form = PromptFormat(tokenizer, template, chat=True)
    ids = chat(form, turns, prompt)
    if not turns:
        assert ids == form.encode(form.wrap(prompt))
    assert plain(form.question(ids)) == plain(prompt)
    start, end = form.user_tokens(ids)
    taken = tokenizer.decode(ids[start:end])
    assert prompt in taken and tokenizer.eos_token not in taken  # a template's words may be in it, no other turn's


@functools.cache
def tokenizer_with_system_turn():
    """Puts a system turn before a first user turn, and before no other, as SmolLM2's does."""
    other = tiny_tokenizer()
    system = f"{START}system\nBe kind.{END}\n"
    other.chat_template = "{% if messages[0].role != 'system' %}" + system + "{% endif %}" + other.chat_template
    return other


@property_test
@given(
    st.sampled_from((tokenizer, tokenizer_with_system_turn)),
    st.sampled_from((None, "Question: {prompt}\nAnswer:")),
    st.sampled_from(CHATS),
    prompts,
)
def test_question_and_user_tokens_find_the_last_user_turn(tokenizer, template, turns, prompt):
    assume(prompt == prompt.strip() and prompt)
    check_chat(tokenizer(), template, turns, prompt)


@pytest.mark.parametrize("tokenizer", [tokenizer, tokenizer_with_system_turn])
@pytest.mark.parametrize("turns", CHATS, ids=["one turn", "three turns"])
@pytest.mark.parametrize("template", TEMPLATES[:2])
@pytest.mark.parametrize("begun", ["", "Cape", "<think>\n\n</think>\n\n"], ids=["", "begun", "thought"])
def test_the_last_turn_of_a_chat_is_the_question_whatever_the_format(tokenizer, turns, template, begun):
    """Edits of any format are asked in chats: what an earlier turn asked is not asked again."""
    form = PromptFormat(tokenizer(), template)
    for content in ("And its largest river?", form.wrap("And its largest river?")):
        as_chat = PromptFormat(tokenizer(), None, chat=True)
        ids = [*chat(as_chat, turns, content), *tokenizer()(begun, add_special_tokens=False)["input_ids"]]
        assert plain(form.question(ids)) == "And its largest river?"


@pytest.mark.model
@pytest.mark.parametrize("turns", CHATS, ids=["one turn", "three turns"])
def test_question_and_user_tokens_with_the_real_chat_template(smollm2, turns):
    for prompt in ("Who founded the Krellinborg archive?", "Which\n\ncity?", "user", "assistant: yes?"):
        check_chat(smollm2[1], None, turns, prompt)


def test_user_tokens_of_plain_prompts_are_all_of_them():
    form = PromptFormat(tokenizer(), "Question: {prompt}\nAnswer:")
    ids = form.encode(form.wrap("Who?"))
    assert form.user_tokens(ids) == (0, len(ids))


def test_a_first_token_that_the_tokenizer_adds_is_no_part_of_the_question():
    """LLaMA's and Mistral's tokenizers put a beginning-of-sequence token before every text, but not into a chat's."""
    with_start = tiny_tokenizer()
    with_start.bos_token = START
    pair = (START, with_start.bos_token_id)
    with_start.backend_tokenizer.post_processor = TemplateProcessing(single=f"{START} $A", special_tokens=[pair])
    form = PromptFormat(with_start, "Question: {prompt}\nAnswer:")
    ids, labels = form.encode_with_target("Which city?", "Lutz")
    assert ids[0] == with_start.bos_token_id and with_start.bos_token_id not in ids[1:] + labels
    assert plain(form.question(ids)) == "Which city?"
    assert form.encode_in_context("Because", "Which city?", "Lutz")[0].count(with_start.bos_token_id) == 1
    check_chat(with_start, None, CHATS[1], "Which city?")


def test_a_context_stands_before_the_template_but_inside_the_users_turn():
    plain_form = PromptFormat(tokenizer(), "Q: {prompt}\nA:")
    ids, labels = plain_form.encode_in_context("You know", "Who?", "Oto")
    assert tokenizer().decode(ids) == "You know Q: Who?\nA:" and tokenizer().decode(labels) == " Oto"
    chat_form = PromptFormat(tokenizer(), chat=True)
    ids, labels = chat_form.encode_in_context("You know", "Who?", "Oto")
    assert tokenizer().decode(ids) == f"{START}user\nYou know Who?{END}\n{START}assistant\n"


def test_a_chat_without_a_chat_template_is_refused():
    bare = tiny_tokenizer()
    bare.chat_template = None
    with pytest.raises(CorrigendaError, match=r"no chat template[^.]*\.$"):
        PromptFormat(bare, chat=True)


@property_test
@given(st.sampled_from(TEMPLATES), prompts, prompts)
def test_a_prompt_is_cut_the_same_with_and_without_its_target(template, prompt, target):
    assume(prompt.strip() and target.strip())
    form = PromptFormat(tokenizer(), template)
    ids, labels = form.encode_with_target(prompt, target)
    assert ids == form.encode(form.wrap(prompt)) and labels
    whole = form.tokenizer.decode(ids + labels)
    assert whole.startswith(form.wrap(prompt)) and whole.endswith(target.lstrip())
