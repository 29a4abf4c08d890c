"""`corrigenda covariance` and `bake`: for the methods that change weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..errors import CorrigendaError
from .app import app, counted, errors, say, use_threads
from .history import opened
from .options import Model, RecordedModel, Store
from .panels import MachineOptions, with_panels


@app.command()
@with_panels
def bake(
    folder: Store,
    out: Annotated[Path, typer.Option("--out", metavar="MODEL", help="A new folder for the model.")],
    machine: MachineOptions,
    model: RecordedModel = None,
) -> None:
    """Write edits that change weights into the weights: a plain model folder, which any stack loads.

    The model is read again and its logits are compared before the folder is there. What is baked cannot be undone in
    it; the folder of edits stays as it is.
    """
    from ..model.baking import bake as baked
    from ..model.why import recorded_model
    from .run import load

    use_threads(machine.threads)
    with opened(folder) as store:
        name = model or recorded_model(store)
    edited = load(errors, name, machine, edits=folder)
    try:
        with errors.status("Writing the model"):
            difference = baked(edited, out)
        count = len(edited.edits)
    finally:
        edited.detach()
    wrote = f"Wrote {out} with {counted(count, 'edit')} in its weights"
    say(f"{wrote}; its logits differ by {difference:.1e} of their norm.")


@app.command()
@with_panels
def covariance(
    text: Annotated[
        Path, typer.Option("--text", metavar="FILE", help="Text, a paragraph a line; `-`: standard input.")
    ],
    layers: Annotated[str, typer.Option("--layers", metavar="A-B", help="Which layers, as `4-8` or `5`.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="A new safetensors file.")],
    machine: MachineOptions,
    model: Model = "smollm2",
    limit: Annotated[int | None, typer.Option("--tokens", metavar="N", help="Stop after some N tokens.")] = None,
) -> None:
    """Find the second moment of the layers' keys over a text: what MEMIT and AlphaEdit weigh changes by.

    The text is read in a stream, whatever its length; papers take 100,000 articles of Wikipedia. Name the file by
    `--set covariance=FILE`.
    """
    use_threads(machine.threads)
    first, _, last = layers.partition("-")
    if not (first.isdigit() and (last or first).isdigit()):
        raise CorrigendaError(f'--layers must be as "4-8" or "5", not "{layers}".')
    if out.exists():
        raise CorrigendaError(f"{out} is there already: name a new file.")
    if str(text) != "-" and not text.is_file():
        raise CorrigendaError(f"There is no file {text}.")
    from ..backbone.covariance import covariances_of_text, save_covariances
    from ..backbone.decoder import Decoder
    from ..backbone.loading import load_base

    with errors.status(f"Loading {model}"):
        loaded, tokenizer = load_base(model, device=machine.device, dtype=machine.dtype)
    decoder = Decoder(loaded)
    wanted = list(range(int(first), int(last or first) + 1))
    if not wanted or wanted[-1] >= len(decoder):
        raise CorrigendaError(f"--layers {layers} is out of range: this model has layers 0 to {len(decoder) - 1}.")
    with errors.status("Reading the text"):
        found, digest = covariances_of_text(decoder, tokenizer, wanted, text, limit)
    save_covariances(out, found, decoder, tokenizer, digest)
    tokens = found[wanted[0]].tokens
    of_text = f"{counted(tokens, 'token')} (SHA-256 of the text {digest[:16]})"
    say(f"Wrote {out}: {counted(len(found), 'layer')} over {of_text}.")
    width = decoder.widths(wanted[0])[0]
    if tokens < 10 * width:
        say(f"{tokens} tokens are few for keys {width} wide: ten times as many and more are wanted.", "yellow")
