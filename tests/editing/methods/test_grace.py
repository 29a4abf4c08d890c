"""GRACE against its formulas in float64: codebook, values, and what either mode makes of a generated answer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from stores import refusal
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.cli.history import _explained
from corrigenda.editing.methods.grace.config import GraceConfig
from corrigenda.editing.model.why import explained
from corrigenda.editing.routers.nearest import NearestKeyRouter

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("What does Kmelt make?", "red bricks", id="c"),
    Edit("Which metal does Arvo mine?", "tin", id="d"),
]
LAYER = 2


class Codebook:
    """The published rules, one key after the other, in plain numbers."""

    def __init__(self, radius):
        self.radius, self.rows = radius, []

    def add(self, key, label, value):
        """The row that holds the key then: [key, radius, label, value]."""
        near = min(self.rows, key=lambda row: float((row[0] - key).norm()), default=None)
        distance = None if near is None else float((near[0] - key).norm())
        if near is None or distance > self.radius + near[1]:
            self.rows.append([key, self.radius, label, value])
        elif near[2] != label:
            near[1] = distance / 2 - 1e-5
            self.rows.append([key, distance / 2, label, value])
        else:
            near[1], near[3] = max(near[1], distance), value
            return near
        return self.rows[-1]

    def find(self, key):
        near = min(self.rows, key=lambda row: float((row[0] - key).norm()), default=None)
        return near if near is not None and float((near[0] - key).norm()) <= near[1] else None


class DenseGrace:
    """The model in float64, whose layer is asked and overruled token by token."""

    def __init__(self, model, prompts, config):
        self.model, self.prompts, self.config = copy.deepcopy(model).double(), prompts, config
        self.model.requires_grad_(False)
        self.module = self.model.model.layers[LAYER].mlp.down_proj
        self.codebook = Codebook(config.radius)

    def forward(self, ids, replace):
        """Logits `[length, vocabulary]`; `replace(place, key)` gives the output of a token there, or None."""

        def hook(_module, args, out):
            rows = [replace(t, key) for t, key in enumerate(args[0][0])]
            return torch.stack([o if row is None else row for o, row in zip(out[0], rows)])[None]

        handle = self.module.register_forward_hook(hook)
        try:
            return self.model(torch.tensor([ids])).logits[0]
        finally:
            handle.remove()

    def key(self, ids):
        keys = []
        with torch.no_grad():
            self.forward(ids, lambda t, key: keys.append(key))
        return keys[-1]

    def edit(self, edit, start, label):
        prompt, target = self.prompts.encode_with_target(edit.prompt, edit.target)
        ids, last = prompt + target, len(prompt) - 1
        value = start.double().clone().requires_grad_()
        optimizer = torch.optim.Adam([value], lr=self.config.learning_rate)
        for _ in range(self.config.steps):
            logits = self.forward(ids, lambda t, key: value if t == last else None)
            optimizer.zero_grad()
            F.cross_entropy(logits[last:-1], torch.tensor(target)).backward()
            optimizer.step()
        return self.codebook.add(self.key(prompt), label, value.detach())

    def generate(self, prompt, count):
        ids = list(prompt)
        for _ in range(count):
            with torch.no_grad():
                ids.append(int(self.forward(ids, lambda t, key: self.answer(t, key, len(prompt) - 1))[-1].argmax()))
        return ids[len(prompt) :]

    def answer(self, t, key, last):
        found = None
        if t == last or (t > last and self.config.mode == "published"):
            found = self.codebook.find(key)
        return None if found is None else found[3]


def far(rows):
    keys = torch.randn(rows, 6, generator=torch.Generator().manual_seed(rows))
    return keys, [float(i % 3) for i in range(rows)]


@pytest.mark.parametrize("radius", [0.1, 0.8, 1.5, 3.0])
def test_keys_open_join_and_part_rows_as_published(radius):
    keys, labels = far(40)
    router, book = NearestKeyRouter(6, radius), Codebook(radius)
    router.add_fingerprints(router.fingerprints_of(torch.cat([keys, torch.tensor(labels)[:, None]], 1)))
    for place, (key, label) in enumerate(zip(keys.double(), labels)):
        book.add(key, label, place)
    state = router.state()
    assert len(book.rows) == router.rows and (radius < 1 or router.rows < 40)
    torch.testing.assert_close(state["router.radii"].double(), torch.tensor([r for _, r, _, _ in book.rows]).double())
    assert state["router.edits"].tolist() == [value for *_, value in book.rows]
    noise = torch.randn(200, 6, generator=torch.Generator().manual_seed(9))
    asked = torch.cat([noise, keys + 0.03 * noise[:40]])
    expected = [-1 if (row := book.find(key)) is None else row[3] for key in asked.double()]
    assert router.decide(asked).route.tolist() == expected
    if radius < 1:
        assert len(set(expected)) > 1 and -1 in expected


def test_a_later_view_of_the_keys_keeps_what_a_reader_saw():
    keys, labels = far(20)
    known = torch.cat([keys, torch.tensor(labels)[:, None]], 1)
    router = NearestKeyRouter(6, 1.5)
    router.add_fingerprints(router.fingerprints_of(known[:10]))
    view, asked = router.view(), keys
    before = view.decide(asked)
    router.add_fingerprints(router.fingerprints_of(known[10:]))
    assert all(torch.equal(a, b) for a, b in zip(before, view.decide(asked)))
    assert not torch.equal(before.route, router.decide(asked).route)
    router.reset()
    assert all(torch.equal(a, b) for a, b in zip(before, view.decide(asked)))


@pytest.mark.parametrize("most", [1, 2, 9])
def test_why_shows_the_nearest_key_first_whatever_another_scores(most):
    """A row with a wide radius scores higher from further away, and is not asked."""
    router = NearestKeyRouter(2, 1.0)
    keys = [(0, 1), (1, 2), (10, 3), (12, 3), (13, 3), (14, 3)]  # the last four are one row, of the radius 4
    known = torch.tensor([[key, 0, label] for key, label in keys], dtype=torch.float32)
    router.add_fingerprints(router.fingerprints_of(known))
    edits = [Edit(f"Key {number}?", "x", id=str(number)) for number in range(len(keys))]
    found = explained(router, torch.tensor([[3.0, 0.0]]), edits, most)
    first = found["nearest"][0]
    assert first["id"] == "1" and first["score"] == found["score"] < 0.5 and found["edit"] is None
    assert len(found["nearest"]) == min(most, len(edits))
    (line, *more) = _explained(found, len(edits), {})
    if most == 1:
        assert "best score 0.2" in line and not more
    else:
        assert max(row["score"] for row in found["nearest"]) == pytest.approx(4 / 11)
        assert "the nearest key's score 0.2" in line and "wider radius" in more[0]


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("mode", ["serving", "published"])
def test_equals_the_formulas_in_float64(wrap, kind, mode):
    config = GraceConfig(layer=LAYER, steps=8, mode=mode, radius=6.0, learning_rate=0.1, batch_size=1)
    model = tiny_model(kind)
    edited = wrap(model, tiny_tokenizer(), config)
    dense = DenseGrace(model, edited.prompts, config)
    for edit in EDITS:
        (known,) = edited.method.fingerprints([edit])
        start = edited.method._start(edit, known, torch.zeros(edited.method.out_width))
        row = dense.edit(edit, start, float(known.view(torch.float32)[-1]))
        edited.edit(edit, keep_unsolved=True)
        torch.testing.assert_close(edited.method.memory.values[-1].double(), row[3], rtol=1e-3, atol=1e-3)
    asked = [edit.prompt for edit in EDITS] + ["What is the capital of Arvo?", "Tell me of the sea"]
    for prompt in asked:
        ids = edited.prompts.encode(prompt)
        found = edited.generate(torch.tensor([ids]), max_new_tokens=6, min_new_tokens=6, do_sample=False)
        expected = dense.generate(ids, 6)
        if tiny_tokenizer().eos_token_id not in expected:
            assert found[0, len(ids) :].tolist() == expected


def test_the_modes_differ_only_after_the_prompt(wrap):
    answers = {}
    for mode in ("serving", "published"):
        config = GraceConfig(layer=LAYER, steps=8, mode=mode, radius=1e4, learning_rate=0.1)
        edited = wrap(tiny_model(), tiny_tokenizer(), config)
        edited.edit(EDITS[:1], keep_unsolved=True)
        ids = torch.tensor([edited.prompts.encode(EDITS[0].prompt)])
        options = {"max_new_tokens": 4, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
        answers[mode] = edited.generate(ids, **options).logits
        edited.detach()
    assert torch.equal(answers["serving"][0], answers["published"][0])
    assert not torch.equal(answers["serving"][1], answers["published"][1])


def test_an_edit_is_answered_alone_and_padded_beside_others(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), GraceConfig(layer=LAYER, steps=8, radius=0.5))
    edited.edit(EDITS, keep_unsolved=True)
    prompts = [edit.prompt for edit in EDITS] + ["Where do the birds of the far north go in the long winter months?"]
    together = edited.answer(prompts, 5)
    alone = [edited.answer([prompt], 5)[0] for prompt in prompts]
    assert [one.text for one in together] == [one.text for one in alone]
    assert [one.edit and one.edit.id for one in together] == ["a", "b", "c", "d", None]


def test_what_an_undo_leaves_is_what_was_never_beside_it(wrap, tmp_path):
    """Rows that an undone edit had parted or joined are found again as if it had never come."""
    # All within reach of each other; one by one, for what is solved beside it changes the last bits of a value.
    config = GraceConfig(layer=LAYER, steps=3, radius=50.0, batch_size=1)
    edited = wrap(tiny_model(), tiny_tokenizer(), config)
    edited.edit(EDITS, keep_unsolved=True)
    assert float(edited.method.router.state()["router.radii"].min()) < 50
    edited.undo("b")
    edited.save_pretrained(tmp_path / "edits")
    other = wrap(tiny_model(), tiny_tokenizer(), config)
    other.edit([edit for edit in EDITS if edit.id != "b"], keep_unsolved=True)
    for name, tensor in other.method.state().items():
        assert torch.equal(tensor, edited.method.state()[name]), name
    again = EditedModel.from_pretrained(tiny_model(), tmp_path / "edits", tokenizer=tiny_tokenizer())
    assert all(torch.equal(t, edited.method.state()[name]) for name, t in again.method.state().items())
    again.detach()


def test_settings_that_cannot_be_are_refused():
    with refusal("radius"):
        GraceConfig(threshold=0.5)
    with refusal("scope"):
        GraceConfig(scope="full")
    with refusal("learning_rate"):
        GraceConfig(learning_rate=0)
