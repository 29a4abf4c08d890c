"""Classifier-free guidance: beside each step, a pass of its own."""

import pytest
import torch
from generating import EDITS, UNROUTED, edited_model, padded, tokenizer, unedited_model


def guided(edited, model, prompt, negative, scale, steps):
    """Guidance by its formula, each pass alone: what follows the prompt, and what the first logits are.

    `edited` answers `prompt`, and the negative prompt where there is one; without one, `model`, which has no edits,
    continues the prompt's last token.
    """
    ids = tokenizer()(prompt)["input_ids"]
    own = ids[-1:] if negative is None else tokenizer()(negative)["input_ids"]

    def last(carrier, prompt, new):
        row = torch.tensor([[*prompt, *new]])
        if carrier is None:
            return model(row).logits[0, -1]
        with carrier.teacher_forcing(row, [len(prompt)], [row.shape[1]]):
            return carrier.model(row).logits[0, -1]

    new = []
    for _ in range(steps):
        with torch.no_grad():
            with_edit = last(edited, ids, new).log_softmax(-1)
            beside = last(edited if negative else None, own, new).log_softmax(-1)
        new.append(int((scale * (with_edit - beside) + beside).argmax()))
        if new[-1] == tokenizer().eos_token_id:
            break
    return new


@pytest.mark.parametrize("negative", [None, UNROUTED[0], EDITS[1].prompt], ids=["none", "plain", "of another edit"])
@pytest.mark.parametrize("use_cache", [True, False])
@pytest.mark.parametrize("method", ["associative", "mask router", "memoir"])
def test_guidance_describes_its_own_pass_at_every_step(method, use_cache, negative):
    edited, model = edited_model("llama", method), unedited_model("llama")
    for prompt, scale in ((EDITS[0].prompt, 3.0), (EDITS[2].prompt, 0.5), (UNROUTED[0], 2.0)):
        inputs = padded([prompt])
        options = {} if negative is None else {"negative_prompt_ids": padded([negative])["input_ids"]}
        output, (source,) = edited.generate(
            **inputs,
            max_new_tokens=6,
            do_sample=False,
            guidance_scale=scale,
            use_cache=use_cache,
            provenance=True,
            **options,
        )
        new = output[0, inputs["input_ids"].shape[1] :].tolist()
        assert new == guided(edited, model, prompt, negative, scale, 6)
        # Guidance may lead away from what the edit says, and then it is not named.
        target = next((edit.target for edit in EDITS if edit.prompt == prompt), None)
        follows = target is not None and (method != "associative" or tokenizer().decode(new).strip().startswith(target))
        assert (source.edit and source.edit.prompt) == (prompt if follows else None)
