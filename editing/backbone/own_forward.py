"""Layers above the edited one as the model's own forward runs them, where they are no plain residual stack."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def standing_in(forwards: dict[nn.Module, Callable[..., Any]]) -> Iterator[None]:
    """Within: these modules' `forward` is another function; their hooks stay."""
    before = {module: vars(module).get("forward") for module in forwards}
    for module, forward in forwards.items():
        vars(module)["forward"] = forward
    try:
        yield
    finally:
        for module, forward in before.items():
            del vars(module)["forward"]
            if forward is not None:
                vars(module)["forward"] = forward


class Call:
    """What a module was called with, and what it gave."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    output: Any


@contextlib.contextmanager
def listening(modules: Sequence[nn.Module]) -> Iterator[list[Call]]:
    """Within: the last call of each of these modules is taken down."""
    calls = [Call() for _ in modules]
    with contextlib.ExitStack() as stack:
        for module, call in zip(modules, calls):

            def listen(_module: nn.Module, args: Any, kwargs: Any, output: Any, call: Call = call) -> None:
                call.args, call.kwargs, call.output = args, kwargs, output

            stack.callback(module.register_forward_hook(listen, with_kwargs=True).remove)
        yield calls


def hidden_of(output: Any) -> Tensor:
    """The hidden states in what a layer gives, some alone and some in a tuple."""
    return output[0] if isinstance(output, tuple) else output


def in_place_of(output: Any, hidden: Tensor) -> Any:
    """The same with other hidden states."""
    return (hidden, *output[1:]) if isinstance(output, tuple) else hidden


class OwnForward:
    """A forward of `body` over `ids` `[rows, length]` up to the edited layer, and what those above are called with.

    Masks, positions, rotary angles, caches, scales, norms after attention or FFN: all are the model's own. The layers
    above do not run here. `after` runs them, for another output of the edited layer's down-projection.

    inputs  `[rows, length, D]` of the down-projection
    hidden  `[rows, length, d]` of the layer, which gives them in a `form`: alone or in a tuple
    """

    def __init__(self, body: nn.Module, layers: Sequence[nn.Module], layer: int, ids: Tensor) -> None:
        edited = layers[layer]
        down_proj = edited.mlp.down_proj
        self.layers = list(layers[layer:])
        above = self.layers[1:]
        # What the layer consists of besides its FFN: attention of any kind, but no norms, which have only vectors.
        parts = [
            part
            for part in edited.children()
            if part is not edited.mlp and any(parameter.dim() > 1 for parameter in part.parameters())
        ]
        called: dict[nn.Module, tuple[tuple[Any, ...], dict[str, Any]]] = {}

        def passed_by(module: nn.Module) -> Callable[..., Any]:
            def forward(*args: Any, **kwargs: Any) -> Any:
                called[module] = args, kwargs
                given = args[0] if args else kwargs["hidden_states"]
                return in_place_of(heard[0].output, given)

            return forward

        with (
            torch.no_grad(),
            standing_in({module: passed_by(module) for module in above}),
            listening([edited, edited.mlp, down_proj, *parts]) as heard,
        ):
            body(input_ids=ids, use_cache=False)
        own, ffn, projection, *others = heard
        self.form = own.output
        self.calls = [(own.args, own.kwargs), *(called[module] for module in above)]
        self.inputs, self.hidden = projection.args[0], hidden_of(own.output)
        self._before = projection.output
        # Where the FFN gives what its down-projection does, the rest of it need not run again.
        whole = isinstance(ffn.output, Tensor) and torch.equal(ffn.output, projection.output)
        self._takes = edited.mlp if whole else down_proj
        self._given = {part: call.output for part, call in zip(parts, others)}

    def after(self, delta: Tensor) -> Tensor:
        """What the last layer makes `[rows, length, d]` of the down-projection's output with `delta` added to it."""
        changed = self._before + delta.to(self._before)
        standing = {part: _returning(output) for part, output in self._given.items()}
        hidden = self.calls[0][0][0] if self.calls[0][0] else self.calls[0][1]["hidden_states"]
        with standing_in({**standing, self._takes: _returning(changed)}):
            hidden = self._run(0, hidden)
        for number in range(1, len(self.layers)):
            hidden = self._run(number, hidden)
        return hidden

    def _run(self, number: int, hidden: Tensor) -> Tensor:
        args, kwargs = self.calls[number]
        if args:
            return hidden_of(self.layers[number](hidden, *args[1:], **kwargs))
        return hidden_of(self.layers[number](**{**kwargs, "hidden_states": hidden}))

    def select(self, rows: Tensor) -> OwnForward:
        """The same for some of the rows."""
        chosen = object.__new__(OwnForward)
        count = len(self._before)
        chosen.layers, chosen._takes, chosen.form = self.layers, self._takes, self.form
        chosen.calls = [_of_rows(call, rows, count) for call in self.calls]
        chosen.inputs, chosen.hidden, chosen._before = self.inputs[rows], self.hidden[rows], self._before[rows]
        chosen._given = _of_rows(self._given, rows, count)
        return chosen


def _returning(output: Any) -> Callable[..., Any]:
    return lambda *args, **kwargs: output


def _of_rows(value: Any, rows: Tensor, count: int) -> Any:
    """Some rows of whatever holds tensors of `count` rows; those of one row are for all."""
    if isinstance(value, Tensor):
        return value[rows.to(value.device)] if value.dim() > 1 and len(value) == count else value
    if isinstance(value, dict):
        return {name: _of_rows(part, rows, count) for name, part in value.items()}
    if isinstance(value, (tuple, list)):
        return type(value)(_of_rows(part, rows, count) for part in value)
    return value


def own_logits(model: nn.Module, layers: Sequence[nn.Module], hidden: Tensor, form: Any) -> Tensor:
    """Next-token logits `[tokens, vocabulary]` by the model's own forward of what its last layer gave, `[tokens, d]`.

    form: what a layer of the model gives, hidden states alone or in a tuple.
    """
    ids = torch.zeros(len(hidden), 1, dtype=torch.int64, device=model.get_input_embeddings().weight.device)
    given = _returning(in_place_of(form, hidden[:, None]))
    with standing_in(dict.fromkeys(layers, given)):
        return model.forward(input_ids=ids, use_cache=False).logits[:, 0]
