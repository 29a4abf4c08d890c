"""The encoder of the router by meaning: the same vectors as the model's own forward, however texts are put together."""

import pytest
import torch
import torch.nn.functional as F
from meaning import needs_encoder
from transformers import AutoModel, BertConfig, BertModel

from corrigenda.editing import CorrigendaError
from corrigenda.editing.routers.meaning import encoder
from corrigenda.editing.routers.meaning.bert import PackedBert

IDS = [[1, 5, 9, 2], [1, 2], [1, 7, 7, 2], [1, 30, 31, 32, 33, 34, 2]]


def small_bert(**shape):
    torch.manual_seed(0)
    config = BertConfig(
        **{"vocab_size": 50, **shape}, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, intermediate_size=64
    )
    return BertModel(config).eval()


def test_a_packed_pass_equals_the_models_own_forward():
    model = small_bert()
    assert PackedBert.reads(model)
    for ids, states in zip(IDS, PackedBert(model)(IDS)):
        with torch.no_grad():
            expected = model(input_ids=torch.tensor([ids])).last_hidden_state[0]
        assert torch.allclose(states, expected, atol=1e-5)


@pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="this torch has no oneDNN")
def test_weights_laid_out_once_give_the_bits_of_plain_ones(monkeypatch):
    model = small_bert().to(torch.bfloat16)
    laid_out = PackedBert(model)(IDS)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    for states, expected in zip(laid_out, PackedBert(model)(IDS)):
        assert torch.equal(states, expected)


def test_a_model_that_is_no_plain_bert_runs_by_itself():
    model = small_bert(hidden_act="relu")
    assert not PackedBert.reads(model)
    for ids, states in zip(IDS, encoder._pass_of(model)(IDS)):
        with torch.no_grad():
            assert torch.equal(states, model(input_ids=torch.tensor([ids])).last_hidden_state[0])


@needs_encoder
def test_vectors_are_the_packaged_models_means():
    found = encoder.load_encoder(encoder.PACKAGED_ENCODER)
    found.forget()
    texts = ["who leads it?", "the capital of it is", "who leads it?"]
    vectors = found.encode(texts)
    model = AutoModel.from_pretrained(encoder.encoder_folder(encoder.PACKAGED_ENCODER)).eval()
    for text, vector in zip(texts, vectors):
        with torch.no_grad():
            states = model(**found.tokenizer(text, return_tensors="pt")).last_hidden_state[0]
        assert F.cosine_similarity(states.mean(0), vector, dim=0) > 0.9995
    found.forget()
    assert torch.allclose(found.encode(texts[:1])[0], vectors[0], atol=1e-2)


@pytest.mark.parametrize(("pooling", "place"), [("cls", 0), ("lasttoken", -1), (None, None)])
def test_a_folder_of_sentence_transformers_is_read(tmp_path, pooling, place):
    from tiny import tiny_tokenizer

    tokenizer = tiny_tokenizer()
    model = small_bert(vocab_size=len(tokenizer))
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    if pooling is not None:
        (tmp_path / "1_Pooling").mkdir()
        key = f"pooling_mode_{pooling}{'_token' if pooling == 'cls' else ''}"
        (tmp_path / "1_Pooling" / "config.json").write_text(f'{{"{key}": true}}')
    found = encoder.Encoder(str(tmp_path))
    vector = found.encode(["a b"])[0]
    with torch.no_grad():
        states = model(input_ids=torch.tensor([found.tokenizer("a b")["input_ids"]])).last_hidden_state[0]
    expected = states.mean(0) if place is None else states[place]
    assert F.cosine_similarity(vector, expected, dim=0) > 0.999


def test_a_folder_that_is_no_encoder_is_said_so(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(CorrigendaError, match=r"The encoder .* cannot be loaded: "):
        encoder.Encoder(str(tmp_path))
