"""Edits on a hub: a repository with a ledger, its head and a model card, sent whole and fetched as plain files."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import CorrigendaError
from ..store.files import HEAD_NAME, LEDGER_NAME, reason_of
from ..store.signing import SIGNATURE_NAME
from ..store.store import EditStore
from .card import CARD_NAME, new_card, renewed

_LARGEST_CARD = 1 << 20
Token = str | bool | None
"""As huggingface_hub takes it: a token, whether to send the one of this machine's login, or None for its own rule."""


def save_card(store: EditStore, directory: str | Path) -> None:
    """Write the card of a store that was just saved in a folder of its own."""
    path = Path(directory)
    try:
        (path / CARD_NAME).write_text(new_card(store, path.absolute().name), encoding="utf-8")
    except OSError as error:
        raise CorrigendaError(f"{path / CARD_NAME} cannot be written: {reason_of(error)}.") from error


def push(
    store: EditStore,
    repo_id: str,
    *,
    commit_message: str = "Upload edits",
    commit_description: str | None = None,
    private: bool | None = None,
    token: Token = None,
    revision: str | None = None,
    create_pr: bool = False,
) -> str:
    """Send a store as it is, undone edits and all, to a repository of a hub, which is made where it is not there.

    A card that the repository has stays, and so does one in the store's own folder, but for what is marked in it as the
    ledger's state. Gives the address of the commit. The other arguments are those of transformers' `push_to_hub`.
    """
    from huggingface_hub import HfApi

    api = HfApi(token=token, library_name="corrigenda")
    with tempfile.TemporaryDirectory() as folder, _readable(f"The edits could not be sent to {repo_id}"):
        store.copy(staged := Path(folder, "edits")).close()
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not create_pr and not revision.startswith("refs/"):
            api.create_branch(repo_id, branch=revision, exist_ok=True)
        card = _remote_card(api, repo_id, revision)
        own = _own_file(store, CARD_NAME) if card is None else None
        text = own.decode("utf-8", "replace") if own is not None else card
        text = new_card(store, repo_id) if text is None else renewed(text, store, repo_id)
        (staged / CARD_NAME).write_bytes(text.encode())
        signature = _own_file(store, SIGNATURE_NAME)
        if signature is not None:
            (staged / SIGNATURE_NAME).write_bytes(signature)
        done = api.upload_folder(
            repo_id=repo_id,
            folder_path=staged,
            allow_patterns=[LEDGER_NAME, HEAD_NAME, SIGNATURE_NAME, CARD_NAME],
            commit_message=commit_message,
            commit_description=commit_description,
            revision=revision,
            create_pr=create_pr,
        )
    return done.pr_url or done.commit_url


@contextlib.contextmanager
def fetched(repo_id: str, revision: str | None = None, token: Token = None) -> Iterator[Path]:
    """Within: a private folder with the edits of a hub's repository, as plain files: its cache holds links.

    Nothing but a ledger, its head and a signature is asked for.
    """
    from huggingface_hub import snapshot_download

    names = (LEDGER_NAME, HEAD_NAME, SIGNATURE_NAME)
    at = "" if revision is None else f" at {revision}"
    with _readable(f"There is no folder {repo_id} with saved edits, and none could be fetched from the hub{at}"):
        found = Path(snapshot_download(repo_id, revision=revision, token=token, allow_patterns=list(names)))
    with tempfile.TemporaryDirectory() as private:
        for name in names:
            if (found / name).is_file():
                shutil.copyfile(found / name, Path(private, name))
        if not Path(private, LEDGER_NAME).is_file():
            raise CorrigendaError(f"The repository {repo_id}{at} holds no saved edits: it has no {LEDGER_NAME}.")
        yield Path(private)


def _remote_card(api: Any, repo_id: str, revision: str | None) -> str | None:
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    try:
        return Path(api.hf_hub_download(repo_id, CARD_NAME, revision=revision)).read_text(encoding="utf-8")
    except LocalEntryNotFoundError:  # the hub was not reached: whether it has a card is not known
        raise
    except EntryNotFoundError:
        return None


def _own_file(store: EditStore, name: str) -> bytes | None:
    """A file beside a store's ledger."""
    folder = store.ledger.folder
    if folder is None or folder.status(name) is None:
        return None
    return folder.read(name, _LARGEST_CARD)


@contextlib.contextmanager
def _readable(what: str) -> Iterator[None]:
    """Within: what keeps a hub from doing what was asked is said in one sentence."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    of_transport: Any = HfHubHTTPError.__bases__[0]  # of the client that this release is built on
    shown = not are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    except (OSError, of_transport, HFValidationError, RuntimeError) as error:  # uploads in threads end in the last
        told = error.__cause__ or error if isinstance(error, RuntimeError) else error
        lines = [line.strip().rstrip(".") for line in str(told).splitlines() if line.strip()]
        reason = "; ".join(lines[:2]).replace(". ", "; ") or type(error).__name__
        raise CorrigendaError(f"{what}: {reason}.") from error
    finally:
        if shown:
            enable_progress_bars()
