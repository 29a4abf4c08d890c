"""ROME and MEMIT's family in double precision, from the papers' formulas: whole forwards, one edit after the other."""

import copy

import torch
import torch.nn.functional as F


class Dense:
    """A float64 twin of a tiny model; `weights[layer]` is the down-projection `[d, D]` that is changed in place."""

    def __init__(self, model, prompts, config, contexts):
        self.model = copy.deepcopy(model).double().requires_grad_(False)
        self.prompts, self.config, self.contexts = prompts, config, contexts
        self.weights = [layer.mlp.down_proj.weight for layer in self.model.model.layers]

    def ids(self, context, edit):
        """(prompt ids, target ids, place of the subject's last token), the subject found by its characters."""
        text = self.prompts.wrap(edit.prompt)
        text = f"{context} {text}" if context else text
        ids = self.prompts.tokenizer(text)["input_ids"]
        whole = self.prompts.tokenizer(f"{text} {edit.target}")["input_ids"]
        assert whole[: len(ids)] == ids
        spans = self.prompts.tokenizer(text, return_offsets_mapping=True)["offset_mapping"]
        last = text.rindex(edit.subject) + len(edit.subject) - 1
        (place,) = [i for i, (begin, end) in enumerate(spans) if begin <= last < end]
        return ids, whole[len(ids) :], place

    def forward(self, tokens, layer=None, place=None, delta=None, kind="ffn"):
        """Logits `[length, vocabulary]`, and what the layer's FFN (or the whole layer) gave, `[length, d]`."""
        seen, handles = [], []

        def add(_module, _args, out):
            hidden = out[0] if isinstance(out, tuple) else out
            seen.append(hidden[0].detach().clone())
            if delta is not None:
                at = torch.zeros_like(hidden)
                at[0, place] = 1
                return hidden + at * delta
            return out

        if layer is not None:
            block = self.model.model.layers[layer]
            handles.append((block.mlp.down_proj if kind == "ffn" else block).register_forward_hook(add))
        try:
            logits = self.model(torch.tensor([tokens]), use_cache=False).logits[0]
        finally:
            for handle in handles:
                handle.remove()
        return logits, seen[0] if seen else None

    def key(self, layer, tokens, place):
        """What the layer's down-projection takes in there."""
        taken = []
        module = self.model.model.layers[layer].mlp.down_proj
        handle = module.register_forward_pre_hook(lambda _module, args: taken.append(args[0][0, place].detach()))
        try:
            self.model(torch.tensor([tokens]), use_cache=False)
        finally:
            handle.remove()
        return taken[0]

    def value(self, edit, layer, kind):
        """(v* , what was there before, last loss, steps), by torch's Adam on whole forwards."""
        config = self.config
        rows = [self.ids(context, edit) for context in self.contexts]
        subject = self.prompts.tokenizer(f"{edit.subject} is a")["input_ids"]
        spans = self.prompts.tokenizer(f"{edit.subject} is a", return_offsets_mapping=True)["offset_mapping"]
        (at,) = [i for i, (begin, end) in enumerate(spans) if begin <= len(edit.subject) - 1 < end]
        ids, target, place = rows[0]
        start = self.forward([*ids, *target[:-1]], layer, kind=kind)[1][place]
        before = F.log_softmax(self.forward(subject)[0][at], -1)
        delta = torch.zeros_like(start, requires_grad=True)
        adam = torch.optim.Adam([delta], lr=config.learning_rate)
        steps = 0
        for step in range(config.steps):
            loss = 0
            for ids, target, place in rows:
                logits, _ = self.forward([*ids, *target[:-1]], layer, place, delta, kind)
                said = F.log_softmax(logits[len(ids) - 1 :], -1)
                loss = loss - said.gather(1, torch.tensor(target)[:, None]).mean() / len(rows)
            now = F.log_softmax(self.forward(subject, layer, at, delta, kind)[0][at], -1)
            loss = loss + config.kl_weight * F.kl_div(before, now, log_target=True, reduction="sum")
            loss = loss + config.value_decay * delta.norm() / start.norm() ** 2
            if float(loss.detach()) < config.stop_loss or step == config.steps - 1:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            steps += 1
            with torch.no_grad():
                if delta.norm() > config.clamp * start.norm():
                    delta *= config.clamp * start.norm() / delta.norm()
        return start + delta.detach(), start, float(loss.detach()), steps

    def keys(self, edit, layer):
        """Of the edit in each context, `[contexts, D]`."""
        rows = [self.ids(context, edit) for context in self.contexts]
        return torch.stack([self.key(layer, [*ids, *target[:-1]], place) for ids, target, place in rows])

    def rome(self, edit, layer, covariance=None):
        """One edit, in place; (last loss, steps)."""
        value, _, loss, steps = self.value(edit, layer, "ffn")
        keys, weight = self.keys(edit, layer), self.weights[layer]
        mean = keys.mean(0)
        u = mean if covariance is None else torch.linalg.inv(covariance) @ mean
        u = u / u.norm()
        key = keys[0] if self.config.keys == "prompt" else mean
        weight += torch.outer((value - weight @ key) / (key @ u), u)
        return loss, steps
