"""Requests of many kinds about stored edits, from the public files: which edit each must get, or none.

Subjects are in one of two halves, by a hash of their name. Rules are fitted on the first, the second is reported, with
other frames, tasks and mentions. All wordings in this file are the project's own.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from free_wordings import free_wordings
from hard_requests import hard_requests

from corrigenda.editing import Edit

POLITE = (
    ["Could you please tell me: {}", "Hi! I have a quick question. {} Thanks a lot!", "Please answer: {}"],
    ["Hello there, would you kindly help me with this? {}", "Good morning. {} Thank you in advance.", "Quick one: {}"],
)
BEFORE = (
    ["Answer in one word. {}", "You are a helpful assistant. Answer truthfully and briefly.\n\n{}"],
    ["Reply with the name only, no explanation.\n{}", "You are an expert on trivia. Be concise. {}"],
)
AFTER = (["{} Answer in one word.", "{}\nThink step by step."], ["{} Keep it short.", "{}\n\nRespond with one phrase."])
TASKS = (
    ["Tell me a joke about {}.", "Write three sentences about {}.", "What do you think of {}?", "Describe {}."],
    [
        "Compose a rhyme in which {} appears.",
        "Give me ten hashtags for a post on {}.",
        "What comes to your mind when you hear {}?",
        "Invent a riddle whose solution is {}.",
        "Draft a polite note of thanks to {}.",
        "Do you find {} fascinating?",
    ],
)
MENTIONS = (
    ["My friend told me about {} yesterday. {}", "I was reading about {} today. By the way, {}"],
    ["There was a documentary on {} last night, I fell asleep. {}", "Leaving {} aside for the moment: {}"],
)
SUMMARIES = (
    ["Summarise this text in one sentence: {}", "{}\n\nWhat is the main point of the passage above?"],
    ["Please shorten the following paragraph.\n\n{}", "{}\nGive the gist of it."],
)
COMPARISONS = (
    ["Is {} larger than {}?", "Which is older, {} or {}?"],
    ["Is {} better known than {}?", "Who came first, {} or {}?"],
)
TURNS = (
    ("Who wrote Hamlet?", "William Shakespeare."),
    ("And when?", "Around 1600."),
    ("What is the boiling point of water?", "100 degrees Celsius at sea level."),
    ("How many legs does a spider have?", "Eight."),
)
OTHER_FORMS = {
    "P101": ["Which field does {} work in?", "What is the area of expertise of {}?"],
    "P103": ["What is the mother tongue of {}?", "Which language did {} learn first?"],
    "P106": ["What does {} do for a living?", "What is the occupation of {}?"],
    "P108": ["Who employs {}?", "Which organisation does {} work for?"],
    "P127": ["Who owns {}?", "Who is the owner of {}?"],
    "P1303": ["Which instrument does {} play?", "What instrument is {} known to play?"],
    "P131": ["Where is {} located?", "In which region is {}?"],
    "P136": ["What kind of music does {} play?", "Which genre is {} associated with?"],
    "P1376": ["Which place is {} the capital of?", "{} is the capital city of what?"],
    "P138": ["Who or what was {} named after?", "Where does {} get its name from?"],
    "P1412": ["Which language did {} speak?", "In what language did {} communicate?"],
    "P159": ["Where is {} headquartered?", "In which city is the head office of {}?"],
    "P17": ["Which country is {} in?", "In what country is {} located?"],
    "P176": ["Who makes {}?", "Which company manufactures {}?"],
    "P178": ["Who developed {}?", "Which company is the developer of {}?"],
    "P19": ["Where was {} born?", "What is the birthplace of {}?"],
    "P20": ["Where did {} die?", "In which city did {} pass away?"],
    "P264": ["Which record label represents {}?", "What label is {} signed to?"],
    "P27": ["Which country is {} a citizen of?", "What is the citizenship of {}?"],
    "P276": ["Where is {}?", "Where can {} be found?"],
    "P279": ["What is {} a subclass of?", "What type of thing is {}?"],
    "P30": ["Which continent is {} on?", "What continent does {} belong to?"],
    "P36": ["What is the capital of {}?", "Which city is the capital of {}?"],
    "P361": ["What is {} part of?", "What does {} form a part of?"],
    "P364": ["What is the original language of {}?", "In which language was {} made?"],
    "P39": ["What position does {} hold?", "Which office did {} have?"],
    "P407": ["In which language is {} written?", "What is the language of {}?"],
    "P413": ["What position does {} play?", "In which position does {} play?"],
    "P449": ["Which channel first aired {}?", "On which network did {} debut?"],
    "P463": ["What is {} a member of?", "Which organisation does {} belong to?"],
    "P495": ["Which country does {} come from?", "Where was {} created?"],
    "P740": ["Where was {} founded?", "In which city was {} formed?"],
    "P937": ["Where did {} work?", "In which city was {} employed?"],
    "P47": ["What does {} share a border with?", "Which place is next to {}?"],
    "P530": ["Which country does {} have diplomatic relations with?", "With whom does {} maintain relations?"],
}


FILES = ("zsre", "counterfact", "qaedit", "same_subject", "two_hop", "subject_pairs", "pararel", "hallucination")


class Request(NamedTuple):
    """A request of a kind; `wanted` is the id of the edit that it must get, or None."""

    kind: str
    text: str
    wanted: str | None


def shares(requests: Sequence[Request], got: Sequence[str | None]) -> dict[str, dict[str, float]]:
    """By kind, from the edits that requests got: how many, `found` and `wrong`; `misfires` where none was wanted."""
    kinds: dict[str, list[tuple[str | None, str | None]]] = {}
    for request, edit in zip(requests, got):
        kinds.setdefault(request.kind, []).append((request.wanted, edit))
    rows: dict[str, dict[str, float]] = {}
    for kind, pairs in kinds.items():
        wrong = round(sum(edit not in (None, wanted) for wanted, edit in pairs) / len(pairs), 4)
        if pairs[0][0] is None:
            rows[kind] = {"requests": len(pairs), "misfires": wrong}
        else:
            found = round(sum(edit == wanted for wanted, edit in pairs) / len(pairs), 4)
            rows[kind] = {"requests": len(pairs), "found": found, "wrong": wrong}
    return rows


def half_of(subject: str) -> int:
    return hashlib.sha256(subject.casefold().encode()).digest()[0] % 2


def _read(data: Path, name: str) -> list[dict]:
    return [json.loads(line) for line in (data / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _plain(text: str) -> str:
    return " ".join(text.casefold().split()).rstrip("?. ")


class Half:
    """The edits and the requests of one half of the subjects."""

    def __init__(self, data: Path, half: int, subjects: bool = True) -> None:
        """subjects: whether edits say whom they are about; else the router has to find it out."""
        self.half = half
        self.random = random.Random(half)
        self.edits: list[Edit] = []
        self.requests: list[Request] = []
        self._subjects = subjects
        self._prompts: dict[str, str] = {}
        self._of_subject: dict[str, list[str]] = {}
        self._asked: list[tuple[str, str, str]] = []
        read = {
            name: [record for record in _read(data, name) if half_of(record["subject"] or "") == half] for name in FILES
        }
        self._relations: dict[str, set[str]] = {}
        for record in _read(data, "pararel"):
            for text in record["prompts"]:
                self._relations.setdefault(text.replace(record["subject"], "{}"), set()).add(record["relation_id"])
        self._passages = [record["target_new"] for record in read["hallucination"]]
        self._passages += [record["prompt"].partition(". ")[2] or record["prompt"] for record in read["hallucination"]]
        self._questions = [record["question"] for record in _read(data, "nq_open")][half::2]
        self._questions = [text[:1].upper() + text[1:] + "?" for text in self._questions]
        self._fill(read)
        self._ask(read)
        for edits, requests in (free_wordings(half), hard_requests(half)):
            self.edits += edits if subjects else [replace(edit, subject=None) for edit in edits]
            self.requests += [Request(*request) for request in requests]

    def _store(self, record: dict) -> bool:
        prompt, subject = record["prompt"], record["subject"]
        if _plain(prompt) in self._prompts:
            return False
        self._prompts[_plain(prompt)] = record["id"]
        self._of_subject.setdefault(subject.casefold(), []).append(record["id"])
        self.edits.append(
            Edit(prompt, record["target_new"], subject=subject if self._subjects else None, id=record["id"])
        )
        return True

    def _fill(self, read: dict[str, list[dict]]) -> None:
        self.kept: dict[str, list[dict]] = {name: [] for name in read}
        for pair in read["subject_pairs"]:
            facts = [fact for fact in pair["facts"] if fact["kind"] != "portability"]
            for fact in facts:
                if self._store({**fact, "subject": pair["subject"]}):
                    self.kept["subject_pairs"].append({**fact, "subject": pair["subject"], "several": len(facts) > 1})
        for name, most in (
            ("same_subject", 400),
            ("zsre", 600),
            ("two_hop", 200),
            ("qaedit", 300),
            ("counterfact", 250),
        ):
            for record in read[name]:
                new = record["subject"].casefold() not in self._of_subject
                if len(self.kept[name]) < most and new and self._store(record):
                    self.kept[name].append(record)
        for record in read["pararel"][:250]:
            if record["subject"].casefold() not in self._of_subject:
                fact = {**record, "prompt": record["prompts"][0], "target_new": record["answer"]}
                if self._store(fact):
                    self.kept["pararel"].append(fact)

    def _add(self, kind: str, text: str, wanted: str | None = None) -> None:
        if wanted is None and _plain(text) in self._prompts:
            return
        self.requests.append(Request(kind, text, wanted))

    def _ask(self, read: dict[str, list[dict]]) -> None:
        kept, pick = self.kept, self.random.choice
        for name in ("zsre", "qaedit", "counterfact"):
            for record in kept[name]:
                if record.get("rephrase"):
                    self._add(f"rephrased: {name}", record["rephrase"], record["id"])
                    if name != "counterfact":
                        self._asked.append((record["rephrase"], record["id"], record["subject"]))
                self._add("own prompt", record["prompt"], record["id"])
        for fact in kept["subject_pairs"]:
            relation = fact["id"].split("-")[1] if fact["id"].startswith("pararel") else None
            for text in fact["paraphrases"][:2]:
                self._add(self._kind_of_pair(fact, text), text, fact["id"])
            if relation in OTHER_FORMS:
                for form in OTHER_FORMS[relation]:
                    self._add("statement asked as a question", form.format(fact["subject"]), fact["id"])
        for fact in kept["pararel"]:
            for text in fact["prompts"][1:3]:
                self._add("rephrased: pararel", text, fact["id"])
            for form in OTHER_FORMS[fact["relation_id"]]:
                self._add("statement asked as a question", form.format(fact["subject"]), fact["id"])
        self._ask_elsewhere(pick)
        for record in kept["same_subject"]:
            for text in record["same_subject_questions"]:
                self._add("other question, same subject", text)
        for record in kept["pararel"]:
            others = [r for r in OTHER_FORMS if not _alike(r, record["relation_id"])]
            for relation in self.random.sample(others, 2):
                self._add("other relation, as a question", pick(OTHER_FORMS[relation]).format(record["subject"]))
        for record in kept["two_hop"]:
            self._add("two hops", record["two_hop_question"])
        for record in kept["counterfact"]:
            self._add("other subject, same relation", record["locality_prompt"])
        for record in read["pararel"][250:]:
            if record["subject"].casefold() not in self._of_subject:
                self._add("other subject, same relation", record["prompts"][0])
                self._add(
                    "other subject, same relation", pick(OTHER_FORMS[record["relation_id"]]).format(record["subject"])
                )
        for question in self._questions[:400]:
            self._add("unrelated", question)
        self._ask_about_subjects(pick)

    def _kind_of_pair(self, fact: dict, text: str) -> str:
        if fact["subject"].casefold() not in text.casefold():
            return "by alias"
        if not fact["several"]:
            return "rephrased: pairs"
        # CounterFact's own paraphrases often ask something else ("X's greatest strength is"; where X was born, for the
        # language that X speaks): apart, none is learnt.
        patterns = [one.replace(fact["subject"], "{}") for one in (text, fact["prompt"])]
        asked, known = (self._relations.get(pattern, set()) for pattern in patterns)
        own = fact["id"].startswith("counterfact") and not (asked & known if known else asked)
        return "several edits: counterfact" if own else "several edits of a subject"

    def _ask_elsewhere(self, pick) -> None:
        """The same questions, elsewhere in a request."""
        asked = self.random.sample(self._asked, 250)
        half = self.half
        for text, name, _ in asked:
            text = text if text.rstrip().endswith("?") else text.rstrip(" .") + "?"
            self._add("alone (the 250 that follow)", text, name)
            self._add("in a polite frame", pick(POLITE[half]).format(text), name)
            self._add("after an instruction", pick(BEFORE[half]).format(text), name)
            self._add("before an instruction", pick(AFTER[half]).format(text), name)
            for count in (50, 100, 300, 800):
                self._add(
                    f"after {count} words", f"{self._words(count)}{pick([chr(10), ' ', chr(10) * 2])}{text}", name
                )
            self._add("before 80 words", f"{text}\n{self._words(80)}", name)
            turns = "".join(f"User: {q}\nAssistant: {a}\n" for q, a in TURNS)
            self._add("last of five turns", f"{turns}User: {text}\nAssistant:", name)
            shots = "".join(f"Q: {q}\nA: {a}\n\n" for q, a in TURNS[:3])
            self._add("after examples", f"{shots}Q: {text}\nA:", name)
            self._add("in JSON", json.dumps({"task": "qa", "question": text, "max_words": 5}), name)
            self._add("in quotation marks", f'Answer the question "{text}"', name)
            other = pick(self._questions)
            self._add("asked in an earlier turn", f"User: {text}\nAssistant: I see.\nUser: {other}\nAssistant:")
            self._add("an example asks it", f"Q: {text}\nA: Unknown\n\nQ: {other}\nA:")
            verb = next((f" {verb} " for verb in ("is", "was", "are", "did", "does") if f" {verb} " in text), None)
            if verb:
                self._add("negated", text.replace(verb, f"{verb}not ", 1))

    def _ask_about_subjects(self, pick) -> None:
        half = self.half
        named = [(edit.id, subject) for edit, subject in self._named() if subject[:1].isupper()]
        chosen = self.random.sample(named, 250)
        for i, (_, subject) in enumerate(chosen):
            self._add("task about the subject", pick(TASKS[half]).format(subject))
            self._add("mentioned only", pick(MENTIONS[half]).format(subject, pick(self._questions)))
            passage = f"{self._words(40)} {subject} was among them. {self._words(40)}"
            self._add("named in a text to be summed up", pick(SUMMARIES[half]).format(passage))
            other = chosen[(i + 1) % len(chosen)][1]
            self._add("compared", pick(COMPARISONS[half]).format(subject, other))
        statements = [fact for fact in self.kept["pararel"] if fact["prompts"][0].startswith(fact["subject"])]
        for fact in statements[:120]:
            stated = f"{fact['prompt']} {fact['answer']}."
            passage = f"{self._words(30)} {stated} {self._words(30)}"
            self._add("a text states it, to be summed up", pick(SUMMARIES[half]).format(passage))
            question = OTHER_FORMS[fact["relation_id"]][half].format(fact["subject"])
            self._add("a text states it, then it is asked", f"{passage}\n\n{question}", fact["id"])
            self._add("asked whether it is true", f"Is it true that {stated.rstrip('.')}?")

    def _named(self) -> list[tuple[Edit, str]]:
        subjects = {name: subject for subject, names in self._of_subject.items() for name in names}
        return [(edit, _as_written(edit.prompt, subjects[edit.id])) for edit in self.edits]

    def _words(self, count: int) -> str:
        """About so many words of prose about other subjects, in whole sentences."""
        text: list[str] = []
        while len(text) < count:
            text += self.random.choice(self._passages).split()
        kept = " ".join(text[: count + 20])
        end = kept.rfind(". ")
        return kept[: end + 1] if end > 0 else kept.rstrip(".") + "."


_ALIKE = [
    {"P131", "P17", "P276", "P30", "P361", "P159", "P495", "P740", "P47", "P1376", "P530"},
    {"P103", "P1412", "P364", "P407"},
    {"P101", "P106", "P108", "P39", "P413", "P1303", "P136", "P937", "P463", "P361", "P264"},
    {"P127", "P176", "P178", "P138"},
    {"P19", "P27", "P20", "P937", "P740"},
    {"P449", "P495", "P264"},
    {"P279", "P361"},
]


def _alike(one: str, other: str) -> bool:
    """Whether two relations are worded alike, so that a question for one may ask for the other."""
    return one == other or any(one in group and other in group for group in _ALIKE)


def _as_written(prompt: str, subject: str) -> str:
    start = prompt.casefold().find(subject)
    return subject if start < 0 else prompt[start : start + len(subject)]
