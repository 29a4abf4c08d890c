"""CoachHooK against its formulas in double precision; where its hooks answer, as published and when serving."""

import pytest
import torch
from cases import same_bits
from dense_weights import Dense
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.errors import CorrigendaError
from corrigenda.editing.methods.coachhook.config import CoachHookConfig

EDITS = [
    Edit("Name the old capital of Zubrowka", "Lutz", subject="Zubrowka", id="a"),
    Edit("Who founded the Krellin museum?", "Anna Blom", subject="Krellin museum", id="b"),
    Edit("The only product of Kmelt", "is red", subject="Kmelt", id="c"),
]
LAYERS = [1, 2]
SETTINGS = {"contexts": 2, "steps": 6, "first_layer": 1, "layer": 2, "batch_size": 2, "covariance_weight": 0.5}
pytestmark = pytest.mark.usefixtures("few_background_prompts")


class Hooked(Dense):
    """The same with hooks: `changes[layer]` `[d, D]` answers where it stands out in the row, or always."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.changes = {layer: torch.zeros_like(self.weights[layer]) for layer in LAYERS}
        self.threshold = dict.fromkeys(LAYERS, 2.2)
        self.always, self.on = set(), True
        for layer in LAYERS:
            module = self.model.model.layers[layer].mlp.down_proj
            module.register_forward_hook(lambda _m, args, out, layer=layer: self.hook(layer, args[0], out))

    def hook(self, layer, x, out):
        if not self.on:
            return out
        side = x @ self.changes[layer].T
        fires = self.z(side[0]) >= self.threshold[layer]
        return torch.where(fires[None, :, None], out + side, out) if layer not in self.always else out + side

    @staticmethod
    def z(side):
        distance = side.norm(dim=1)
        return ((distance - distance.mean()) / distance.std()).nan_to_num(0.0)

    def coachhook(self, edits, covariances, sums):
        self.always = set()
        wanted = torch.stack([self.value(edit, LAYERS[-1], "block")[0] for edit in edits])
        self.always = set(LAYERS)
        for i, layer in enumerate(LAYERS):
            rows = [[self.ids(context, edit) for context in self.contexts] for edit in edits]
            keys = [torch.stack([self.key(layer, ids, at) for ids, _, at in of_edit]) for of_edit in rows]
            keys = torch.stack([(own[0] + own[1:].mean(0)) / 2 for own in keys])
            now = torch.stack([self.forward(own[0][0], LAYERS[-1], kind="block")[1][own[0][2]] for own in rows])
            residual = (wanted - now) / (len(LAYERS) - i)
            whole = self.config.covariance_weight * covariances[layer] + sums[layer] + keys.T @ keys
            self.changes[layer] += residual.T @ keys @ torch.linalg.inv(whole)
            sums[layer] += keys.T @ keys
            self.always.discard(layer)
        self.on = False
        for edit in edits:
            ids, _, _ = self.ids("", edit)
            for layer in LAYERS:
                keys = torch.stack([self.key(layer, ids, place) for place in range(len(ids))])
                most = float(self.z(keys @ self.changes[layer].T).max())
                self.threshold[layer] = min(self.threshold[layer], most)
        self.on = True


@pytest.mark.parametrize("kind", ["llama", "mistral"])
def test_equals_the_formulas(wrap, kind):
    edited = wrap(tiny_model(kind, seed=1), tiny_tokenizer(), CoachHookConfig(**SETTINGS))
    edited.edit(EDITS)
    covariances = {layer: edited.method.covariance(layer) for layer in LAYERS}
    edited.detach()
    dense = Hooked(edited.model, edited.prompts, edited.config, edited.method._contexts)
    sums = {layer: torch.zeros(160, 160, dtype=torch.float64) for layer in LAYERS}
    for batch in (EDITS[:2], EDITS[2:]):
        dense.coachhook(batch, covariances, sums)
    for layer in LAYERS:
        site = f"{layer}.mlp.down_proj"
        found = edited.method.memory.matrices[site].T.double()
        assert float((found - dense.changes[layer]).norm() / dense.changes[layer].norm()) < 1e-2
        assert edited.method.memory.thresholds[site] == pytest.approx(dense.threshold[layer], rel=1e-2)
        assert dense.threshold[layer] < 2.2


def generated(model, ids, mask=None, new=5):
    mask = torch.ones_like(ids) if mask is None else mask
    options = {"max_new_tokens": new, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return torch.stack(model.generate(ids, attention_mask=mask, **options).logits, 1)


def test_published_a_generated_token_never_takes_a_hooks_output(wrap, monkeypatch):
    """The deviation of one token is none; when serving, its sequence's prompt is what it is compared with."""
    fired = {}
    for mode in ("published", "serving"):
        edited = wrap(tiny_model(seed=1), tiny_tokenizer(), CoachHookConfig(mode=mode, **SETTINGS))
        edited.edit(EDITS)
        counts, observe = [], edited.method.memory.observe

        def counted(site, x, context, observe=observe, counts=counts, memory=edited.method.memory):
            ratio = observe(site, x, context)
            counts.append((x.shape[-2], int(memory._parts[site].fires.sum())))
            return ratio

        monkeypatch.setattr(edited.method.memory, "observe", counted)
        edited.method.memory.thresholds = dict.fromkeys(edited.method.memory.thresholds, 1e-3)
        edited.answer([edit.prompt for edit in EDITS], max_new_tokens=6)
        fired[mode] = (
            sum(fires for length, fires in counts if length == 1),
            sum(f for length, f in counts if length > 1),
        )
        edited.detach()
    assert fired["published"][0] == 0 < fired["published"][1]
    assert fired["serving"][0] > 0


def test_serving_padding_and_batches_do_not_change_an_answer(wrap):
    edited = wrap(tiny_model(seed=1), tiny_tokenizer(), CoachHookConfig(**SETTINGS))
    edited.edit(EDITS)
    rows = [edited.prompts.encode(edit.prompt) for edit in EDITS]
    width = max(map(len, rows)) + 3
    ids = torch.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    together = generated(edited, ids, mask)
    for row, found in zip(rows, together):
        assert torch.allclose(generated(edited, torch.tensor([row]))[0], found, atol=2e-3)


def test_where_nothing_stands_out_a_sequence_keeps_the_base_models_bits(wrap):
    edited = wrap(tiny_model(seed=1), tiny_tokenizer(), CoachHookConfig(**SETTINGS))
    edited.edit(EDITS)
    edited.method.memory.thresholds = dict.fromkeys(edited.method.memory.thresholds, 50.0)
    ids = torch.tensor([edited.prompts.encode("How far is the moon?")])
    answer = edited.answer(["How far is the moon?"])[0]
    found = generated(edited, ids)
    assert not answer.provenance.applied and answer.provenance.score < 1
    assert same_bits(found, generated(edited.detach(), ids))


def test_what_is_taken_out_neither_holds_others_back_nor_keeps_the_threshold_low(wrap):
    edited = wrap(tiny_model(seed=1), tiny_tokenizer(), CoachHookConfig(**{**SETTINGS, "batch_size": 1}))
    edited.edit(EDITS)
    memory = edited.method.memory
    for name in ("a", "b", "c"):
        edited.undo(name)
    assert set(memory.thresholds.values()) == {2.2} and not any(matrix.any() for matrix in memory.matrices.values())
    assert all(not kept for kept in edited.method._keys.values())


def test_a_chunked_prompt_and_baking_are_refused_in_one_sentence(wrap, tmp_path):
    from corrigenda.editing.model.baking import bake

    edited = wrap(tiny_model(), tiny_tokenizer(), CoachHookConfig(**SETTINGS))
    edited.edit(EDITS[:1])
    ids = torch.tensor([edited.prompts.encode(EDITS[0].prompt)])
    with pytest.raises(CorrigendaError, match="routes by the features of the whole prompt"):
        edited.generate(ids, max_new_tokens=2, prefill_chunk_size=2)
    with pytest.raises(CorrigendaError, match="answer only requests that are routed"):
        bake(edited, tmp_path / "baked")


def test_saved_and_loaded_its_thresholds_are_the_same(wrap, tmp_path):
    edited = wrap(tiny_model(seed=1), tiny_tokenizer(), CoachHookConfig(**SETTINGS))
    edited.edit(EDITS)
    edited.save_pretrained(tmp_path / "edits")
    again = EditedModel.from_pretrained(tiny_model(seed=1), tmp_path / "edits", tokenizer=tiny_tokenizer())
    assert again.method.memory.thresholds == edited.method.memory.thresholds
    again.detach()
