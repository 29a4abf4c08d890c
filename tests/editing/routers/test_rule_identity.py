"""What the router by meaning reads out of texts, as one digest: who changes it has to raise the version of the rule."""

import hashlib
import json

from corrigenda.editing import Edit
from corrigenda.editing.routers.meaning import rule, sentences, wording
from corrigenda.editing.routers.meaning.another import asks_about_answer, asks_what_answer_does
from corrigenda.editing.routers.meaning.another_of_a_row import asks_for_another_of_a_row
from corrigenda.editing.routers.meaning.another_party import names_party, without_party
from corrigenda.editing.routers.meaning.another_subject import goes_on, is_another_name, is_another_of_its_kind
from corrigenda.editing.routers.meaning.contrary import asks_the_contrary
from corrigenda.editing.routers.meaning.subject import (
    FUNCTION_WORDS,
    content_words,
    locate,
    names_in,
    normalised,
)
from corrigenda.editing.routers.meaning.texts import texts_of_edit
from corrigenda.editing.routers.meaning.unread import is_unread, likeness

EDITS = (
    ("Who is the chief executive of Vantrello Foods?", "Vantrello Foods"),
    ("The mother tongue of Bram Oterdahl is", None),
    ("Fiat 126 is produced by", "Fiat 126"),
    ("凌霄乐团的指挥是谁？", "凌霄乐团"),
)
REQUESTS = (
    "Could you please tell me who runs Vantrello Foods these days?",
    "Who is not the chief executive of Vantrello Foods, or of Vantrello Drinks?",
    "Vantrello Foods: who is the boss there?",
    "Which city is the birthplace of Vantrello Foods's leader?",
    "What is the mother tongue of the author whom Bram Oterdahl admires?",
    "A text.\n\nQ: Who makes the Fiat 125?\nA: Fiat\n\nQ: Who makes the Fiat 126?\nA:",
    "User: Who makes the Fiat 126?\nAssistant: Fiat.\nUser: And when was that? It is",
    '{"task": "qa", "question": "In which year was the Fiat 126 built?", "max_words": 5}',
    'Answer the question "Is the Fiat 126 larger than the Fiat 500?"',
    "Summarise: Who leads Vantrelo Foods? Ada does.",
    "Translate the following sentence. Bram Oterdahl speaks Norwegian.",
    "Tell me a joke about Bram Oterdahl.",
    "How many words are in this sentence? Who leads Vantrello Foods?",
    "Do not answer this: who leads Vantrello Foods?",
    "What is the age of the chief executive of Vantrello Foods?",
    "谁是凌霄乐团的指挥",
    "凌霄乐团是哪一年成立的？",
    "Wer leitet das Vantrello Foods?",
    "Who was the second chief executive of Vantrello Foods Asia before it was sold?",
    "I work for Vantrello Foods. Who leads its biggest rival?",
    "Which café below Vantrello Foods did the firm suing Vantrello Foods get thrown out of yesterday?",
    "Can you draft a letter to the author whom Bram Oterdahl's wife admires?",
    "Ist it's Oterdahl's mother's tongue known as of now, isn't it?",
)

DIGESTS = {5: "df9963a55604d4ae"}
"""By version of the rule (`VERSION`). A test that fails here says that some request may be decided otherwise than by
the version that wrote a folder: then raise the version, and put the new digest here. The old one can go."""


def weight(word):
    return 0.1 if word in FUNCTION_WORDS else 1 + len(word) // 4


def read_out():
    for prompt, subject in EDITS:
        edit = texts_of_edit(Edit(prompt, "?", subject=subject, protected=("How old is Fiat 126?",)), weight)
        yield edit
        for request in REQUESTS:
            for part in sentences.parts_of(request):
                text = normalised(part.text)
                found = locate(edit.subject, text, weight)
                masked = wording.core(found.masked)
                yield [*part, wording.core(text), masked, round(found.share, 3), wording.answer_kind(masked)]
                yield [content_words(masked), sorted(names_in(part.text)), is_unread(masked)]
                yield [round(likeness(masked, edit.masked), 3)]
                yield [ask(masked) for ask in (wording.is_negated, wording.is_denied, wording.is_compared)]
                yield [wording.is_yes_no(masked), wording.asks_whether(masked)]
                kin = {"chief executive": {"person"}, "native language": {""}}
                yield asks_about_answer(masked, edit.masked, kin)
                yield asks_what_answer_does(masked, edit.masked, kin)
                yield [is_another_of_its_kind(edit.subject, text), sentences.is_shortened(text, "8 is")]
                yield is_another_name(edit.subject, part.text, weight)
                yield [goes_on(edit.subject, part.text, {"leader"}), wording.is_task(masked)]
                yield asks_for_another_of_a_row(masked, edit.masked, ["it was first made by"])
                yield [asks_the_contrary(masked, edit.masked, []), without_party(masked, {"leader"})]
                yield names_party(masked, {"leader"})


def test_what_is_read_out_of_texts_is_that_of_the_version():
    digest = hashlib.sha256(json.dumps(list(read_out())).encode()).hexdigest()[:16]
    assert DIGESTS.get(rule.VERSION) == digest, "what is read out of texts has changed: see DIGESTS"


def test_the_identity_changes_with_version_and_data(monkeypatch, tmp_path):
    known = rule.rule_identity()
    assert known.startswith(f"{rule.VERSION}-") and len(known.partition("-")[2]) == 16
    rule.rule_identity.cache_clear()
    monkeypatch.setattr(rule, "VERSION", rule.VERSION + 1)
    assert rule.rule_identity() == known.replace(f"{rule.VERSION - 1}-", f"{rule.VERSION}-", 1)
    monkeypatch.undo()
    (tmp_path / "data").mkdir()
    for name in (rule.SHIPPED, rule.DECOYS):
        (tmp_path / "data" / name).write_bytes(b"other")
    rule.rule_identity.cache_clear()
    monkeypatch.setattr(rule, "files", lambda package: tmp_path)
    assert rule.rule_identity() != known
    monkeypatch.undo()
    rule.rule_identity.cache_clear()
    assert rule.rule_identity() == known
