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
        if edit.subject is None:
            return ids, whole[len(ids) :], None
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

    def spread(self, edits, layers, directions):
        """One batch over several layers, in place: `directions(layer, K)` `[D, edits]` is what keys are turned by."""
        wanted = torch.stack([self.value(edit, layers[-1], "block")[0] for edit in edits])
        for i, layer in enumerate(layers):
            keys = self.mean_keys(edits, layer)
            now = []
            for edit in edits:
                ids, target, place = self.ids("", edit)
                now.append(self.forward([*ids, *target[:-1]], layers[-1], kind="block")[1][place])
            residual = (wanted - torch.stack(now)) / (len(layers) - i)
            self.weights[layer] += residual.T @ directions(layer, keys.T).T

    def mean_keys(self, edits, layer):
        keys = [self.keys(edit, layer) for edit in edits]
        return torch.stack([(own[0] + own[1:].mean(0)) / 2 for own in keys])

    def memit(self, edits, layers, covariances):
        weight = self.config.covariance_weight
        self.spread(edits, layers, lambda layer, k: torch.linalg.inv(weight * covariances[layer] + k @ k.T) @ k)

    def alphaedit(self, edits, layers, covariances, before):
        """`before[layer]` `[D, D]`: the sum over earlier batches' keys, brought up to date in place."""
        config = self.config

        def directions(layer, k):
            left, singular, _ = torch.linalg.svd(covariances[layer])
            free = left[:, singular < config.null_threshold]
            projector = free @ free.T
            whole = projector @ (k @ k.T + before[layer]) + config.ridge * torch.eye(len(k), dtype=torch.float64)
            return torch.linalg.solve(whole, projector @ k)

        self.spread(edits, layers, directions)
        for layer in layers:
            keys = self.mean_keys(edits, layer)
            before[layer] += keys.T @ keys

    def traces(self, edits, sites):
        """Of one pass of these edits: by site the inputs and output gradients at answer tokens, `[tokens, width]`."""
        wanted = {site: ([], []) for site in sites}
        pairs, count = [], 0
        handles = []
        taken = {}

        def keep(site):
            def hook(_module, args, out):
                leaf = out.detach().requires_grad_()
                taken[site] = args[0][0], leaf
                return out + (leaf - leaf.detach())  # whose gradient is the output's

            return hook

        for site, module in sites.items():
            handles.append(module.register_forward_hook(keep(site)))
        try:
            for edit in edits:
                ids, target, _ = self.ids("", edit)
                logits = self.model(torch.tensor([[*ids, *target[:-1]]]), use_cache=False).logits[0, len(ids) - 1 :]
                loss = F.cross_entropy(logits, torch.tensor(target), reduction="sum")
                pairs.append((loss, dict(taken), len(ids) - 1))
                count += len(target)
        finally:
            for handle in handles:
                handle.remove()
        for loss, of_edit, first in pairs:
            gradients = torch.autograd.grad(loss / count, [out for _, out in of_edit.values()])
            for (site, (x, _)), gradient in zip(of_edit.items(), gradients):
                wanted[site][0].append(x[first:].detach())
                wanted[site][1].append(gradient[0, first:])
        return {site: tuple(torch.cat(part) for part in parts) for site, parts in wanted.items()}

    def ultraedit(self, batches, sites):
        """Batches of microbatches of edits, in place, in the published primal form."""
        config, state = self.config, {}
        for batch in batches:
            rows = {site: ([], []) for site in sites}
            for micro in batch:
                found = self.traces(micro, sites)
                for site, (x, g) in found.items():
                    whole = torch.cat([x, g], 1)
                    n, mean, spread = state.setdefault(x.shape[1:] + g.shape[1:], (0, 0.0, 0.0))
                    b, apart = len(whole), whole.mean(0) - mean
                    spread = spread + b * whole.var(0) + n * b / (n + b) * apart**2
                    state[x.shape[1:] + g.shape[1:]] = n + b, mean + b * apart / (n + b), spread
                    rows[site][0].append(x)
                    rows[site][1].append(g)
            for site, module in sites.items():
                x, g = (torch.cat(part) for part in rows[site])
                n, mean, spread = state[x.shape[1:] + g.shape[1:]]
                whole = (torch.cat([x, g], 1) - mean) / ((spread / (n - 1)).sqrt() + 1.2e-7)
                x_hat, g_hat = whole.split([x.shape[1], g.shape[1]], 1)
                values = -config.learning_rate * x_hat.square().sum(1, keepdim=True) * g_hat
                eye = torch.eye(x.shape[1], dtype=torch.float64)
                module.weight += torch.linalg.solve(x.T @ x + eye, x.T @ values).T

    def ft_m(self, edit, layer):
        """One edit, in place, by torch's Adam on the weight itself; (last loss, steps)."""
        config, weight = self.config, self.weights[layer]
        start = self.start = getattr(self, "start", weight.clone())
        weight.requires_grad_(True)
        adam, steps = torch.optim.Adam([weight], lr=config.learning_rate), 0
        ids, target, _ = self.ids("", edit)
        for _ in range(config.steps):
            logits = self.model(torch.tensor([[*ids, *target[:-1]]]), use_cache=False).logits[0, len(ids) - 1 :]
            loss = F.cross_entropy(logits, torch.tensor(target))
            if float(loss.detach()) < config.stop_loss:
                break
            adam.zero_grad()
            loss.backward()
            adam.step()
            steps += 1
            if config.norm_constraint is not None:
                with torch.no_grad():
                    weight.copy_(start + (weight - start).clamp(-config.norm_constraint, config.norm_constraint))
        weight.requires_grad_(False)
        return float(loss.detach()), steps
