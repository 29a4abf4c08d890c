"""WISE as its published code runs it: what the fast path must equal, and what its speed is measured against.

Every step is a full forward and backward of the model over 12 left-padded rows with logits at every position, a copy
of the edited weight under `torch.optim.SGD`, its gradient multiplied by a dense 0/1 mask, and a clamp of the whole
weight. Written from the paper's algorithm; it shares nothing with the package but the text format and the masks' bits.
Padding counts in no distance, where the published code lets it. Of what goes beyond the paper it knows, in their plain
form, what changes a step or a distance: `margin_weight`, `spared`, `distance_tokens`, `reduction`, `merge_scale`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F


class DenseWise:
    """The dense loop over a plain transformers model; weights `[d, D]`.

    mask_of(shard): bool `[D, d]`, the entries that a shard's edits may write. config: the settings, a `WiseConfig`.
    sparing: `[D, D]`, what an update is multiplied by on the side of the inputs; None for nothing.
    """

    def __init__(self, model, prompts, contexts, layer, config, mask_of, sparing=None):
        self.model = model
        self.prompts = prompts
        self.contexts = contexts
        self.config = config
        self.steps = config.steps
        self.mask_of = mask_of
        self.sparing = sparing
        self.module = model.model.layers[layer].mlp.down_proj
        model.requires_grad_(False)
        self.frozen = self.module.weight.detach().clone()
        self.device = self.frozen.device
        self.side = torch.nn.Parameter(self.frozen.clone())
        self.minimum = float("inf")
        self.finished = []  # [weight, minimum] of closed shards
        self.merged = None  # for "merge": the layer's own weight after a merge
        self.edits = 0

    def _batch(self, edit, irrelevant):
        rows = [self.prompts.encode_in_context(text, edit.prompt, edit.target) for text in self.contexts]
        rows.append((irrelevant, []))
        width = max(len(prompt) + len(target) for prompt, target in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.long)
        attention = torch.zeros_like(ids)
        labels = torch.full_like(ids, -100)
        for i, (prompt, target) in enumerate(rows):
            target = target + [self.prompts.eos] * (self.config.eos and i < len(self.contexts))
            # The last label is only predicted: a row is what the model reads.
            ids[i, width - len(prompt) - len(target) :] = torch.tensor(prompt + target)
            attention[i, width - len(prompt) - len(target) :] = 1
            labels[i, width - len(target) :] = torch.tensor(target)
        # The last target token is read by no label and counts in no distance either: it is not part of a row.
        counted = attention.clone()
        counted[: len(self.contexts), -1] = 0
        if self.config.distance_tokens == "prompt":
            counted *= labels == -100
        return tuple(part.to(self.device) for part in (ids, attention, labels, counted))

    def token_distance(self, x, weight):
        """How far another weight than the frozen one moves the output, token by token."""
        changed, original = F.linear(x, weight), F.linear(x, self.frozen)
        if self.config.distance == "activated":
            changed, original = F.silu(changed), F.silu(original)
        return (changed - original).norm(dim=-1)

    def edit(self, edit, irrelevant):
        """Write one edit; the loss at every forward. `irrelevant`: token ids of a prompt that is about no edit."""
        config = self.config
        shard = self.edits // config.save_every
        mask = self.mask_of(shard).T
        ids, attention, labels, read = self._batch(edit, irrelevant)
        taken = {}

        def replace(_module, args, _out):
            taken["x"] = args[0]
            return F.linear(args[0], self.side)

        decay = config.weight_decay if config.decay == "all" else 0.0
        optimizer = torch.optim.SGD([self.side], lr=config.learning_rate, weight_decay=decay)
        handle = self.module.register_forward_hook(replace)
        losses = []
        try:
            for _ in range(self.steps):
                logits = self.model(ids, attention_mask=attention).logits
                token_loss = F.cross_entropy(logits[:, :-1].transpose(1, 2), labels[:, 1:], reduction="none")
                # The published label mask starts one position early, on a label that is ignored.
                counted = (labels[:, 1:] != -100).sum(1) + 1
                loss = (token_loss.sum(1) / counted)[: len(self.contexts)].mean()
                of_token = self.token_distance(taken["x"], self.side)
                distance = (of_token * read).sum(1) / read.sum(1)
                edited, unrelated = distance[:-1], distance[-1]
                loss = loss + config.margin_weight * sum(
                    part[part > 0].mean() if (part > 0).any() else 0.0
                    for part in (
                        unrelated[None] - config.alpha,
                        config.beta - edited,
                        config.gamma - (edited - unrelated),
                    )
                )
                losses.append(loss.item())
                still = len(losses) > 1 and abs(losses[-1] - losses[-2]) <= config.stop_change
                if still and losses[-1] <= config.stop_loss:
                    break
                optimizer.zero_grad()
                loss.backward()
                if self.sparing is not None:
                    self.side.grad.copy_(self.side.grad @ self.sparing)
                self.side.grad.mul_(mask)
                if config.decay == "masked":
                    self.side.grad.add_(config.weight_decay * self.side.detach() * mask)
                optimizer.step()
                with torch.no_grad():
                    limit = config.norm_constraint
                    self.side.copy_(torch.clamp(self.side, self.frozen - limit, self.frozen + limit))
        finally:
            handle.remove()
        if config.reduction == "max":
            edited = (of_token * read)[:-1].amax(1)
        self.minimum = min(self.minimum, edited.mean().item())
        self.edits += 1
        if self.edits % config.save_every == 0:
            self._close()
        return losses

    def _close(self):
        config = self.config
        self.finished.append([self.side.detach().clone(), self.minimum])
        self.side.data.copy_(self.frozen)
        if config.variant == "retrieve":
            self.minimum = float("inf")
        if not config.merge_every or self.edits % config.merge_every:
            return
        count = config.merge_every // config.save_every
        if config.variant == "retrieve":
            last = self.finished[-count:]
            merged = self.ties([weight for weight, _ in last], [1 / count] * count)
            self.finished[-count:] = [[merged, min(minimum for _, minimum in last)]]
        else:
            weights = [weight for weight, _ in self.finished]
            if self.merged is None:
                self.merged = self.ties(weights, [1 / count] * count)
            else:
                shares = [(1 - config.merged_weight) / count] * count + [config.merged_weight]
                mean = self.frozen + (self.merged - self.frozen) / config.merge_scale
                self.merged = self.ties([*weights, mean], shares)
            self.finished = []

    def ties(self, weights, shares):
        """The frozen weight and the TIES merge of the differences to it, scaled."""
        trimmed = []
        for weight in weights:
            delta = weight - self.frozen
            keep = max(1, int(self.config.merge_density * delta.numel()))
            threshold = delta.abs().flatten().topk(keep).values[-1]
            trimmed.append(torch.where(delta.abs() >= threshold, delta, 0.0))
        share = torch.tensor(shares, dtype=weights[0].dtype, device=self.device)[:, None, None]
        parts = share * torch.stack(trimmed)
        sign = torch.where(parts.sum(0) >= 0, 1, -1)
        agrees = (parts * sign > 0).to(parts.dtype)
        mass = (share * agrees).sum(0)
        mean = torch.where(mass > 0, (parts * agrees).sum(0) / mass.clamp(min=1e-30), 0.0)
        return self.frozen + self.config.merge_scale * mean

    @torch.no_grad()
    def route(self, prompt):
        """Which weight answers a tokenised prompt, None for the frozen one; and distances by the weights' ids."""
        taken = []
        handle = self.module.register_forward_pre_hook(lambda _m, args: taken.append(args[0]))
        self.model(torch.tensor([prompt], device=self.device))
        handle.remove()

        def distance(weight):
            tokens = self.token_distance(taken[0][0], weight)
            longest = {"published": 100, "mean": 1 << 30, "max": 0}[self.config.reduction]
            return float(tokens.mean() if len(tokens) <= longest else tokens.max())

        ratio = self.config.act_ratio
        if self.config.variant == "merge":
            merged = self.frozen if self.merged is None else self.merged
            far = {id(weight): distance(weight) for weight in (merged, self.side)}
            answer = merged if far[id(merged)] > far[id(self.side)] else self.side
            return (None if max(far.values()) < ratio * self.minimum else answer), far
        best = distance(self.side)
        far = {id(self.side): best}
        answer = self.side if best >= ratio * self.minimum else None
        for weight, minimum in self.finished:
            far[id(weight)] = distance(weight)
            if far[id(weight)] > best and far[id(weight)] > ratio * minimum:
                answer, best = weight, far[id(weight)]
        return answer, far
