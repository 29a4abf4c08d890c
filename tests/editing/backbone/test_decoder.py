"""A model seen as its parts: which models fit, and the parts' results against the model's own forward."""

import functools

import pytest
import torch
import torch.nn.functional as F
import transformers
from families import ids, one_sentence, small
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import AssociativeConfig, CorrigendaError, Edit, EditedModel, MemoirConfig
from corrigenda.editing.backbone.check import check_decoder
from corrigenda.editing.backbone.decoder import Decoder, causal_mask
from corrigenda.editing.backbone.frozen import Row, frozen_features, length_groups
from corrigenda.editing.backbone.last_layer import LabelPositions, knows
from corrigenda.editing.backbone.suffix import Suffix, suffix_of
from corrigenda.editing.methods import steps
from corrigenda.editing.methods.registry import resolved

LENGTHS = (5, 12, 9, 12, 1, 20)
PLAIN = ("Llama", "Mistral", "Qwen3")
NOT_PLAIN = ("Gemma2", "Cohere", "Glm4", "Olmo3", "Granite")
every_kind = pytest.mark.parametrize("kind", ["llama", "mistral"])


def rows():
    """Rows of unlike lengths, their last 1 to 4 tokens labels; one more label is only predicted."""
    found = []
    for i, length in enumerate(LENGTHS):
        tokens = ids(length + 1, seed=i)
        cut = max(1, length - i % 4)
        found.append(Row(tuple(tokens[:cut]), tuple(tokens[cut:])))
    return found


# Which models fit


@pytest.mark.parametrize(
    "model, missing",
    [
        (lambda: transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=1, n_embd=8, n_head=2)), "`layers`"),
        (lambda: small("Phi"), "`mlp.down_proj`"),
        (lambda: small("OPT", ffn_dim=16, word_embed_proj_dim=32), "`mlp.down_proj`"),
        (lambda: small("Llama").model, "output head"),
        (lambda: torch.nn.Linear(3, 3), "`layers`"),
    ],
    ids=["GPT-2", "Phi", "OPT", "no head", "no language model"],
)
def test_a_model_without_the_structure_is_told_what_it_lacks(model, missing):
    model = model()
    with pytest.raises(CorrigendaError) as error:
        EditedModel.wrap(model, tiny_tokenizer())
    assert missing in one_sentence(error) and type(model).__name__ in str(error.value)
    assert not hasattr(model, "_corrigenda")


@pytest.mark.parametrize(
    "name, settings",
    [
        ("Llama", {}),
        ("Llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
        ("Llama", {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1e4}}),
        ("Mistral", {}),
        ("Qwen2", {}),
        ("Qwen3", {}),
        ("Phi3", {}),
        ("Gemma", {}),
    ],
)
def test_plain_residual_stacks_are_accepted_and_edited(name, settings):
    model = small(name, **settings)
    decoder = Decoder(model)
    assert len(decoder) == 3 and decoder.widths(1) == (48, 32)
    assert all(decoder.is_plain(layer) for layer in range(3))
    for layer in range(2):
        check_decoder(decoder, layer)
    edited = EditedModel.wrap(model, tiny_tokenizer(), AssociativeConfig(router="tokens", contexts=1, steps=60))
    edited.edit(Edit("The capital of Zubrowka is", "Lutz"))
    assert edited.generate_text(["The capital of Zubrowka is"], 8) == ["Lutz"]


# The parts' results


@every_kind
def test_the_last_layer_at_the_asked_tokens_is_the_whole_layer_there(kind):
    decoder = Decoder(tiny_model(kind, seed=1))
    layer = decoder.layers[-1]
    assert knows(layer) and not knows(small("Qwen2").model.layers[-1])
    hidden = torch.randn(5, 11, 64)
    positions = torch.arange(11)[None]
    mask = causal_mask(11, hidden.dtype, hidden.device)
    whole = decoder.run(hidden, len(decoder) - 1, len(decoder), positions, mask)
    single = torch.zeros(5, 11, dtype=torch.bool)
    single[3, 4] = True
    for asked in (torch.rand(5, 11) < 0.3, torch.ones(5, 11, dtype=torch.bool), single):
        asked[1] = asked[1] & (asked is not single)  # a row that is asked nothing
        at = LabelPositions(asked, decoder.angles(hidden, positions), mask, hidden.device)
        found = decoder.last_layer_at(hidden, at)
        torch.testing.assert_close(found, whole[asked], rtol=1e-4, atol=1e-5)
    loss = decoder.last_layer_at(hidden.requires_grad_(), at).square().sum()
    (gradient,) = torch.autograd.grad(loss, hidden)
    whole = decoder.run(hidden, len(decoder) - 1, len(decoder), positions, mask)
    torch.testing.assert_close(gradient, torch.autograd.grad(whole[asked].square().sum(), hidden)[0])


@pytest.mark.parametrize("budget", [1, 24, 10_000])
@pytest.mark.parametrize("name", [*PLAIN, *NOT_PLAIN])
def test_frozen_features_are_the_models_own(name, budget):
    model = small(name)
    texts = [ids(length, seed=i) for i, length in enumerate(LENGTHS)]
    for layer in (0, 2):
        found = frozen_features(Decoder(model), layer, texts, budget)
        for tokens, features in zip(texts, found):
            inputs, hidden = own_features(model, layer, tokens)
            torch.testing.assert_close(features.inputs, inputs, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(features.hidden, hidden, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def own_features(model, layer, tokens):
    """What a row's down-projection takes in and its layer gives, by hooks on the model's own forward."""
    taken = {}
    at = model.model.layers[layer]
    handles = [
        at.mlp.down_proj.register_forward_pre_hook(lambda _m, args: taken.update(inputs=args[0][0])),
        at.register_forward_hook(
            lambda _m, _a, out: taken.update(hidden=(out[0] if isinstance(out, tuple) else out).view(len(tokens), -1))
        ),
    ]
    model(torch.tensor([tokens]), use_cache=False)
    for handle in handles:
        handle.remove()
    return taken["inputs"], taken["hidden"]


def test_a_sliding_window_shorter_than_a_row_is_honoured():
    """Mistral-7B-v0.1 attends to 4,096 tokens back; writing must see what the model sees."""
    model, layer = small("Mistral", sliding_window=4).requires_grad_(False), 1
    row = Row(tuple(ids(12)), tuple(ids(3)))
    (features,) = frozen_features(Decoder(model), layer, [row.tokens])
    inputs, hidden = own_features(model, layer, row.tokens)
    torch.testing.assert_close(features.inputs, inputs, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(features.hidden, hidden, rtol=1e-4, atol=1e-5)
    delta = 0.5 * torch.randn(3, 32)
    losses = suffix_of(Decoder(model), layer, [features.hidden], [row], [11]).losses(delta)
    torch.testing.assert_close(losses[losses != 0], own_losses(model, layer, row, 11, delta), rtol=1e-4, atol=1e-5)


def own_losses(model, layer, row, start, delta):
    """Cross-entropy at each label through the whole model, `delta` added to the down-projection from `start` on."""
    padded = F.pad(delta, (0, 0, start, 0))
    handle = model.model.layers[layer].mlp.down_proj.register_forward_hook(lambda _m, _a, out: out + padded)
    logits = model(torch.tensor([row.tokens]), use_cache=False).logits[0]
    handle.remove()
    return F.cross_entropy(logits[len(row.prompt) - 1 :], torch.tensor(row.labels), reduction="none")


STARTS = {
    "whole rows": lambda row: 0,
    "cached": lambda row: len(row.prompt) - 1,
    "partly": lambda row: len(row.prompt) // 2,
}


@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("name", [*PLAIN, *NOT_PLAIN])
@pytest.mark.parametrize("layer", [0, 1])
def test_suffix_losses_and_gradients_are_the_whole_models(name, layer, start):
    model = small(name).requires_grad_(False)
    texts = rows()
    starts = [STARTS[start](row) for row in texts]
    hidden = [f.hidden for f in frozen_features(Decoder(model), layer, [row.tokens for row in texts])]
    suffix = suffix_of(Decoder(model), layer, hidden, texts, starts)
    assert (type(suffix) is Suffix) == (name in PLAIN)
    assert (suffix.cache is None) == (start == "whole rows" or name in NOT_PLAIN)
    deltas = [0.5 * torch.randn(len(row.tokens) - s, 32) for row, s in zip(texts, starts)]
    for chosen in (list(range(len(texts))), [4, 1, 2]):
        part = suffix if len(chosen) == len(texts) else suffix.select(torch.tensor(chosen))
        delta = torch.cat([deltas[i] for i in chosen]).requires_grad_()
        losses = part.losses(delta)
        own_delta = delta.detach().clone().requires_grad_()
        split = own_delta.split([len(deltas[i]) for i in chosen])
        own = [own_losses(model, layer, texts[i], starts[i], d) for i, d in zip(chosen, split)]
        for row_losses, expected in zip(losses, own):
            torch.testing.assert_close(row_losses[row_losses != 0], expected, rtol=1e-4, atol=1e-5)
        (gradient,) = torch.autograd.grad(losses.sum(), delta)
        (expected,) = torch.autograd.grad(torch.cat(own).sum(), own_delta)
        torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-5)


def test_an_edits_rows_pass_the_head_together_or_apart(monkeypatch):
    """However many groups of rows share a pass of the head, losses and gradients are the same."""
    model, texts = small("Llama").requires_grad_(False), rows()
    found = frozen_features(Decoder(model), 0, [row.tokens for row in texts])
    monkeypatch.setattr(steps, "_STEP_TOKENS", 1)  # each row a group
    losses, gradients, passes = [], [], []
    delta = 0.5 * torch.randn(sum(len(row.tokens) for row in texts), 32)
    for budget in (1, 20, 10_000):
        monkeypatch.setattr(steps, "_HEAD_TOKENS", budget)
        batch = steps.EditRows(Decoder(model), 0, texts, found, [0] * len(texts), 1)
        loss, gradient = batch.loss_and_gradient(delta)
        losses.append(loss)
        gradients.append(gradient)
        passes.append(len(batch._passes))
    assert passes[0] == len(texts) > passes[1] > passes[2] == 1
    for loss, gradient in zip(losses[1:], gradients[1:]):
        torch.testing.assert_close(loss, losses[0])
        torch.testing.assert_close(gradient, gradients[0])


def test_length_groups_keep_to_their_budget():
    lengths = [7, 1, 30, 7, 2, 2, 9]
    groups = list(length_groups(lengths, 14))
    assert sorted(i for group in groups for i in group) == list(range(7))
    assert groups == [[1, 4, 5], [0, 3], [6], [2]]
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[i] for i in group) <= 14
    assert list(length_groups([], 14)) == []


def test_the_attention_implementation_is_put_back():
    model = small("Llama")
    decoder = Decoder(model)
    for implementation in ("eager", "sdpa"):
        model.config._attn_implementation = implementation
        with pytest.raises(KeyError), decoder.masked_attention():
            raise KeyError
        assert model.config._attn_implementation == implementation


# Settings that depend on the model


@functools.cache
def depth_of(layers, width):
    """A decoder of that shape with no weights."""
    config = transformers.LlamaConfig(
        num_hidden_layers=layers, intermediate_size=width, hidden_size=64, num_attention_heads=4, vocab_size=32
    )
    with torch.device("meta"):
        return Decoder(transformers.LlamaForCausalLM(config))


@pytest.mark.parametrize(
    "config, words",
    [
        (AssociativeConfig(layer=4), ("Layer 4", "0 to 3")),
        (AssociativeConfig(layer=-1), ("Layer -1", "0 to 3")),
        (MemoirConfig(layer=3), ("Layer 3", "last", "0 to 2")),
        (MemoirConfig(top_k=161), ("top_k 161", "160")),
        (AssociativeConfig(router="mask", top_k=1000), ("top_k 1000", "160")),
        (AssociativeConfig(router="mask", router_layer=2, layer=1), ("router_layer 2", "0 to 1")),
        (AssociativeConfig(router="mask", router_layer=-1), ("router_layer -1",)),
    ],
)
def test_settings_that_do_not_fit_the_model_are_refused(config, words):
    with pytest.raises(CorrigendaError) as error:
        EditedModel.wrap(tiny_model(), tiny_tokenizer(), config)
    message = one_sentence(error)
    assert all(word in message for word in words)


def test_defaults_for_a_model():
    published = resolved(MemoirConfig(), depth_of(32, 14336))
    assert (published.layer, published.top_k, published.threshold) == (27, 4096, 0.4)
    assert published.learning_rate == 1.0
    chosen = MemoirConfig(layer=3, top_k=100, threshold=0.9, learning_rate=2.0)
    assert resolved(chosen, depth_of(32, 14336)) == chosen
    assert resolved(MemoirConfig(threshold="auto"), depth_of(32, 14336)).threshold == "auto"
    other = resolved(MemoirConfig(), depth_of(16, 1000))
    assert (other.layer, other.top_k, other.threshold) == (13, 286, "auto")
    ours = resolved(AssociativeConfig(), depth_of(32, 14336))
    assert ours.layer == 28 and ours.router_layer is None and ours.top_k is None and ours.threshold == "auto"
    masked = resolved(AssociativeConfig(router="mask"), depth_of(16, 1000))
    assert (masked.router_layer, masked.top_k) == (2, 286)
    shallow = resolved(AssociativeConfig(), depth_of(2, 64))
    assert shallow.layer == 0 and AssociativeConfig().layer is None
