"""MEMOIR as its published code runs it: what the fast path must equal, and what its speed is measured against.

Every step is a full forward and backward of the model over 12 left-padded rows with logits at every position, a dense
residual matrix under `torch.optim.SGD`, and dense gradient clipping. Written from the paper's algorithm; it shares
nothing with the package but the text format, the permutation and the background mean.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class DenseMemoir:
    """The dense loop over a plain transformers model; `weight` `[d, D]` is the residual memory."""

    def __init__(self, model, prompts, contexts, layer, top_k, permutation, background, steps=30, **settings):
        self.model = model
        self.prompts = prompts
        self.contexts = contexts
        self.top_k = top_k
        self.permutation = permutation
        self.background = background
        self.steps = steps
        self.learning_rate = settings.get("learning_rate", 1.0)
        self.weight_decay = settings.get("weight_decay", 1e-5)
        self.clip_norm = settings.get("clip_norm", 1.0)
        self.module = model.model.layers[layer].mlp.down_proj
        model.requires_grad_(False)
        self.device = self.module.weight.device
        self.weight = torch.nn.Parameter(torch.zeros_like(self.module.weight))
        self.masks = []

    def mask_of(self, prompt_ids):
        """bool `[D]`: the permuted top-k of the centred mean feature of a prompt."""
        taken = []
        handle = self.module.register_forward_pre_hook(lambda _m, args: taken.append(args[0]))
        with torch.no_grad():
            self.model(torch.tensor([prompt_ids], device=self.device))
        handle.remove()
        feature = taken[0][0].mean(0) - self.background
        mask = torch.zeros(len(feature), dtype=torch.bool, device=self.device)
        mask[self.permutation[feature.abs().topk(self.top_k).indices]] = True
        return mask

    def _batch(self, edit, irrelevant):
        rows = []
        for context in self.contexts:
            prompt, target = self.prompts.encode_in_context(context, edit.prompt, edit.target)
            rows.append((prompt, target))
        rows.append(self.prompts.encode_with_target(*irrelevant))
        width = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        attention = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)
        for i, (prompt, target) in enumerate(rows):
            length = len(prompt) + len(target)
            ids[i, width - length :] = torch.tensor(prompt + target)
            attention[i, width - length :] = 1
            if i < len(self.contexts):
                labels[i, width - len(target) :] = torch.tensor(target)
        return *(part.to(self.device) for part in (ids, attention, labels)), rows[0][0]

    def edit(self, edit, irrelevant):
        """Write one edit; the loss at every forward."""
        ids, attention, labels, prompt = self._batch(edit, irrelevant)
        mask = self.mask_of(prompt)
        self.masks.append(mask)

        def residual(_module, args, out):
            return out + (args[0] * mask) @ self.weight.T

        optimizer = torch.optim.SGD([self.weight], lr=self.learning_rate, weight_decay=self.weight_decay)
        handle = self.module.register_forward_hook(residual)
        losses = []
        try:
            for _ in range(self.steps):
                logits = self.model(ids, attention_mask=attention).logits
                token_loss = F.cross_entropy(
                    logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none", ignore_index=-100
                )
                # The published label mask starts one position early, on a label that is ignored.
                counted = (labels[:, 1:] != -100).sum(1) + 1
                loss = (token_loss.sum(1) / counted)[: len(self.contexts)].mean()
                losses.append(loss.item())
                if len(losses) > 1 and abs(losses[-1] - losses[-2]) <= 1e-4 and losses[-1] <= 0.02:
                    break
                optimizer.zero_grad()
                loss.backward()
                torch.nn.utils.clip_grad_norm_([self.weight], self.clip_norm)
                optimizer.step()
        finally:
            handle.remove()
        return losses
