"""Tiny random models of any architecture of transformers, and prompts for them."""

import torch
import transformers
from tiny import tiny_tokenizer

SCALED = {
    "Gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 6},
    "Granite": {"logits_scaling": 8.0, "residual_multiplier": 0.2, "embedding_multiplier": 12.0},
    "Olmo3": {"sliding_window": 6},
}


def small(name, **settings):
    """A tiny random model of an architecture of transformers, for the tiny tokenizer."""
    config = getattr(transformers, f"{name}Config")(
        **{
            "vocab_size": len(tiny_tokenizer()),
            "hidden_size": 32,
            "intermediate_size": 48,
            "num_hidden_layers": 3,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "initializer_range": 0.1,
            "eos_token_id": tiny_tokenizer().eos_token_id,
            "pad_token_id": tiny_tokenizer().pad_token_id,
            "bos_token_id": None,
            **SCALED.get(name, {}),
            **settings,
        }
    )
    torch.manual_seed(0)
    return getattr(transformers, f"{name}ForCausalLM")(config).float().eval()


def ids(length, seed=0):
    generator = torch.Generator().manual_seed(1000 * seed + length)
    return torch.randint(3, len(tiny_tokenizer()), (length,), generator=generator).tolist()


def one_sentence(error):
    message = str(error.value)
    assert message.endswith(".") and "\n" not in message and ". " not in message
    return message
