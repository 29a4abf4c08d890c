"""Tiny random LLaMA and Mistral models with a real tokenizer: everything that a pretrained one has, but knowledge."""

from __future__ import annotations

import functools
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from corrigenda.editing.backbone.background import background_prompts
from corrigenda.editing.backbone.backpack import BackpackConfig, BackpackForCausalLM

VOCABULARY = 700
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"
KINDS = {"llama": (LlamaConfig, LlamaForCausalLM), "mistral": (MistralConfig, MistralForCausalLM)}

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@functools.cache
def _trained(vocabulary: int, texts: tuple[str, ...]) -> str:
    """Byte-level BPE, trained on the background prompts and `texts`: what is in neither is cut into pieces."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=[PAD, START, END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*background_prompts(), "Question: Answer:", *texts], trainer)
    return tokenizer.to_str()


def tiny_tokenizer(vocabulary: int = VOCABULARY, texts: tuple[str, ...] = ()) -> PreTrainedTokenizerFast:
    """A tokenizer of some hundred tokens that encodes any text, ends answers with EOS and knows chats (ChatML)."""
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(_trained(vocabulary, texts)),
        eos_token=END,
        pad_token=PAD,
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model(
    kind: str = "llama",
    seed: int = 0,
    layers: int = 4,
    hidden: int = 64,
    ffn: int = 160,
    heads: int = 4,
    kv_heads: int = 2,
    max_positions: int = 512,
) -> PreTrainedModel:
    """A random model in fp32 for `tiny_tokenizer`, the same for the same seed.

    Its weights are five times the usual size: with the usual ones every layer of so small a model adds next to
    nothing, and all logits are alike.
    """
    tokenizer = tiny_tokenizer()
    config_class, model_class = KINDS[kind]
    config = config_class(
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=ffn,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=max_positions,
        initializer_range=0.1,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return model_class(config).float().eval()


def tiny_backpack(seed: int = 0, layers: int = 4, hidden: int = 64, senses: int = 4) -> PreTrainedModel:
    """A random Backpack in fp32, whose senses a tiny LLaMA weighs; the same for the same seed."""
    tokenizer = tiny_tokenizer()
    config = BackpackConfig(
        senses=senses,
        vocab_size=len(tokenizer),
        hidden_size=hidden,
        intermediate_size=160,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.1,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return BackpackForCausalLM(config).float().eval()


def save_tiny(path: str | Path, kind: str = "llama", seed: int = 0) -> Path:
    """The folder `path` with a tiny model and its tokenizer, as `from_pretrained` reads it."""
    tiny_model(kind, seed).save_pretrained(path)
    tiny_tokenizer().save_pretrained(path)
    return Path(path)
