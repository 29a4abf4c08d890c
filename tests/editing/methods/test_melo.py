"""MELO against its formulas in float64: clusters, blocks, and what either mode makes of a generated answer."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.nn.functional as F
from stores import refusal
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.backbone.decoder import Decoder
from corrigenda.editing.backbone.outputs import outputs_of
from corrigenda.editing.memories.adapters import LowRankAdapters
from corrigenda.editing.methods.melo.config import MeloConfig
from corrigenda.editing.routers.clusters import ClusterRouter

EDITS = [
    Edit("What is the capital of Zubrowka?", "Lutz City", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", id="b"),
    Edit("What does Kmelt make?", "red bricks", id="c"),
    Edit("Which metal does Arvo mine?", "tin", id="d"),
]
ROUTER, ADAPTED = 1, (2, 3)
SETTINGS = {"layer": ROUTER, "steps": 6, "learning_rate": 1e-2, "scale": 4.0, "halve_every": 3}


class Index:
    """The published cluster rules in plain numbers: [centre, radius, label, [(key, edit), ...]] of each."""

    def __init__(self, radius):
        self.radius, self.clusters, self.count = radius, [], 0

    def add(self, batch):
        before = [(cluster, cluster[0]) for cluster in self.clusters]
        for key, label in batch:
            near = min(before, key=lambda pair: float((pair[1] - key).norm()), default=None)
            distance = None if near is None else float((near[1] - key).norm())
            if near is None or distance > near[0][1] + self.radius:
                self.clusters.append([key, self.radius, label, [(key, self.count)]])
            elif near[0][2] == label:
                cluster = near[0]
                cluster[3].append((key, self.count))
                cluster[0] = sum(member for member, _ in cluster[3]) / len(cluster[3])
                cluster[1] = max(self.radius, *(float((m - cluster[0]).norm()) for m, _ in cluster[3]))
            else:
                cluster = near[0]
                self.clusters.append([key, distance / 2 + 1e-5, label, [(key, self.count)]])
                cluster[1] = distance / 2 - 1e-5
                kept = [one for one in cluster[3] if float((one[0] - cluster[0]).norm()) <= cluster[1]]
                cluster[3] = kept or [(cluster[0], -1)]
            self.count += 1

    def find(self, key):
        near = min(self.clusters, key=lambda cluster: float((cluster[0] - key).norm()), default=None)
        if near is None or float((near[0] - key).norm()) > near[1]:
            return -1
        return min(near[3], key=lambda member: float((member[0] - key).norm()))[1]


class DenseMelo:
    """The model in float64 with a block at each adapted map, chosen by hand for each token."""

    def __init__(self, model, prompts, config):
        self.model, self.prompts, self.config = copy.deepcopy(model).double().requires_grad_(False), prompts, config
        self.index, self.blocks = Index(config.radius), []

    def forward(self, ids, block_of):
        """Logits `[length, vocabulary]` and keys `[length, D]`; `block_of(keys)` gives a block, or None, a token."""
        found = {}

        def key_hook(_m, _args, out):
            found["keys"] = out[0]
            found["blocks"] = block_of(out[0])

        def adapt(layer):
            def hook(_m, args, out):
                rows = []
                for x, y, block in zip(args[0][0], out[0], found["blocks"]):
                    if block is not None:
                        down, up = block[layer]
                        y = y + self.config.scale * up.T @ (down @ x)
                    rows.append(y)
                return torch.stack(rows)[None]

            return hook

        layers = self.model.model.layers
        handles = [layers[ROUTER].mlp.up_proj.register_forward_hook(key_hook)]
        handles += [layers[i].mlp.up_proj.register_forward_hook(adapt(i)) for i in ADAPTED]
        try:
            return self.model(torch.tensor([ids])).logits[0], found["keys"]
        finally:
            for handle in handles:
                handle.remove()

    def edit(self, edits, start, label):
        block = {
            layer: tuple(part.detach().double().clone().requires_grad_() for part in start[f"{layer}.mlp.up_proj"])
            for layer in ADAPTED
        }
        rows = [self.prompts.encode_with_target(edit.prompt, edit.target) for edit in edits]
        optimizer = torch.optim.Adam([part for pair in block.values() for part in pair], lr=self.config.learning_rate)
        for step in range(self.config.steps):
            for group in optimizer.param_groups:
                group["lr"] = self.config.learning_rate * 0.5 ** (step // self.config.halve_every)
            losses = []
            for prompt, target in rows:
                logits, _ = self.forward(prompt + target, lambda keys: [block] * len(keys))
                losses.append(F.cross_entropy(logits[len(prompt) - 1 : -1], torch.tensor(target), reduction="none"))
            optimizer.zero_grad()
            torch.cat(losses).mean().backward()
            optimizer.step()
        block = {layer: tuple(part.detach() for part in pair) for layer, pair in block.items()}
        keys = []
        for prompt, target in rows:
            asked = prompt + target if self.config.mode == "published" else prompt
            keys.append(self.forward(asked, lambda keys: [None] * len(keys))[1][-1])
        self.index.add([(key, label(target)) for key, (_, target) in zip(keys, rows)])
        self.blocks += [block] * len(edits)
        return block

    def generate(self, prompt, count):
        ids = list(prompt)

        def chosen(keys):
            routes = [self.index.find(keys[len(prompt) - 1])] * len(keys)
            if self.config.mode == "published":
                routes[len(prompt) :] = [self.index.find(key) for key in keys[len(prompt) :]]
            return [None if route < 0 else self.blocks[route] for route in routes]

        for _ in range(count):
            with torch.no_grad():
                ids.append(int(self.forward(ids, chosen)[0][-1].argmax()))
        return ids[len(prompt) :]


@pytest.mark.parametrize("radius", [0.3, 0.8, 1.5])
@pytest.mark.parametrize("size", [1, 3])
def test_keys_open_join_and_part_clusters_as_published(radius, size):
    keys = torch.randn(30, 6, generator=torch.Generator().manual_seed(1))
    labels = [float(i % 2) for i in range(30)]
    router, index = ClusterRouter(6, radius), Index(radius)
    known = router.fingerprints_of(torch.cat([keys, torch.tensor(labels)[:, None]], 1))
    for start in range(0, 30, size):
        router.add_fingerprints(known[start : start + size])
        index.add(list(zip(keys.double(), labels))[start : start + size])
    assert len(router.clusters) == len(index.clusters)
    for own, other in zip(router.clusters, index.clusters):
        assert own.radius == pytest.approx(other[1], rel=1e-4) and own.label == other[2]
        assert [edit for _, edit in own.members] == [edit for _, edit in other[3]]
        torch.testing.assert_close(own.center.double(), other[0], rtol=1e-5, atol=1e-5)
    noise = torch.randn(200, 6, generator=torch.Generator().manual_seed(9))
    asked = torch.cat([noise, keys + 0.05 * noise[:30]])
    expected = [index.find(key) for key in asked.double()]
    assert router.decide(asked).route.tolist() == expected and len(set(expected)) > 2
    if radius == 1.5:
        assert any(edit < 0 for cluster in router.clusters for _, edit in cluster.members) or size == 3


@pytest.mark.parametrize("kind", ["llama", "mistral"])
@pytest.mark.parametrize("mode, size", [("serving", 1), ("serving", 2), ("published", 2)])
def test_equals_the_formulas_in_float64(wrap, kind, mode, size):
    config = MeloConfig(mode=mode, batch_size=size, radius=8.0, **SETTINGS)
    model = tiny_model(kind)
    edited = wrap(model, tiny_tokenizer(), config)
    dense = DenseMelo(model, edited.prompts, config)
    for start in range(0, 4, size):
        batch = EDITS[start : start + size]
        block = dense.edit(batch, edited.method._start(batch), lambda target: float(sum(target)))
        edited.edit(batch, keep_unsolved=True)
        for layer in ADAPTED:
            down, up, of = edited.method.memory.part(f"{layer}.mlp.up_proj")
            assert of[-size:].tolist() == [start // size] * size
            torch.testing.assert_close(down[-1].double(), block[layer][0], rtol=1e-3, atol=1e-4)
            torch.testing.assert_close(up[-1].double(), config.scale * block[layer][1], rtol=2e-3, atol=2e-4)
    for prompt in [edit.prompt for edit in EDITS] + ["What is the capital of Arvo?", "Tell me of the sea"]:
        ids = edited.prompts.encode(prompt)
        found = edited.generate(torch.tensor([ids]), max_new_tokens=5, min_new_tokens=5, do_sample=False)
        expected = dense.generate(ids, 5)
        if tiny_tokenizer().eos_token_id not in expected:
            assert found[0, len(ids) :].tolist() == expected


def test_edits_of_one_batch_share_a_block_and_one_of_them_can_go(wrap):
    edited = wrap(tiny_model(), tiny_tokenizer(), MeloConfig(radius=0.5, batch_size=4, **SETTINGS))
    edited.edit(EDITS, keep_unsolved=True)
    assert edited.method.memory.blocks == 1 and edited.method.memory.size == 4
    before = [answer.text for answer in edited.answer([edit.prompt for edit in EDITS], 4)]
    edited.undo("b")
    assert edited.method.memory.blocks == 1 and edited.method.memory.size == 3
    after = edited.answer([edit.prompt for edit in EDITS], 4)
    assert [one.edit and one.edit.id for one in after] == ["a", None, "c", "d"]
    assert [one.text for one in after][::2] == before[::2]


def test_with_a_block_each_an_undo_leaves_what_never_was_beside_it(wrap):
    config = MeloConfig(radius=40.0, batch_size=1, **SETTINGS)  # all within reach of each other
    edited, other = (wrap(tiny_model(), tiny_tokenizer(), config) for _ in range(2))
    edited.edit(EDITS, keep_unsolved=True)
    edited.undo("b")
    other.edit([edit for edit in EDITS if edit.id != "b"], keep_unsolved=True)
    for name, tensor in other.method.state().items():
        assert torch.equal(tensor, edited.method.state()[name]), name


def test_adapters_are_read_by_each_tokens_route():
    generator = torch.Generator().manual_seed(0)
    adapters = LowRankAdapters({"a": (6, 5)}, 2, {"a": torch.device("cpu")})
    pairs = [(torch.randn(2, 6, generator=generator), torch.randn(2, 5, generator=generator)) for _ in range(12)]
    for number, pair in enumerate(pairs):
        adapters.append({"a": pair}, 1 + number % 2)
    of = [number for number in range(12) for _ in range(1 + number % 2)]
    route = torch.tensor([-1, 17, 0, 5, 5, -1, 9], dtype=torch.int32)
    x, out = torch.randn(7, 6, generator=generator), torch.randn(7, 5, generator=generator)
    out[0, 0] = -0.0
    before = out.clone()
    adapters.part("a").read_(out, x, route, torch.zeros(7, dtype=torch.bool))
    for t, r in enumerate(route.tolist()):
        expected = before[t] if r < 0 else before[t] + (x[t] @ pairs[of[r]][0].T) @ pairs[of[r]][1]
        torch.testing.assert_close(out[t], expected)
        assert r >= 0 or torch.equal(out[t].view(torch.int32), before[t].view(torch.int32))
    view, bits = adapters.view(), adapters.part("a").down.clone()
    adapters.reset()
    adapters.append({"a": pairs[0]}, 1)
    assert view.part("a").down.equal(bits) and adapters.part("a").down.shape[0] == 1


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_outputs_of_one_module_are_those_of_the_whole_forward(kind):
    decoder = Decoder(tiny_model(kind))
    module, rows = decoder.layers[1].mlp.up_proj, [[4, 5, 6], [7, 8, 9, 10, 11], [12]]
    found, taken = outputs_of(decoder, module, rows), []
    handle = module.register_forward_hook(lambda _m, _a, out: taken.append(out[0]))
    for row in rows:
        decoder.model(torch.tensor([row]))
    handle.remove()
    assert not module._forward_hooks
    for own, whole in zip(found, taken):
        torch.testing.assert_close(own, whole, rtol=1e-5, atol=1e-5)


def test_an_edit_with_a_block_of_its_own_stands_on_no_other():
    assert not MeloConfig(batch_size=1).stands_on_earlier and MeloConfig(batch_size=2).stands_on_earlier


def test_settings_that_cannot_be_are_refused(wrap):
    for wrong in ({"threshold": 0.5}, {"scope": "causal"}, {"radius": 0.0}, {"rank": 0}):
        with refusal(next(iter(wrong))):
            MeloConfig(**wrong)
    with refusal("Layer 3", "0 to 1"):
        wrap(tiny_model(), tiny_tokenizer(), MeloConfig(layer=3))
