"""Which edits a server answers by: the stores it has read, what each tenant sees of them, and its router."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..editing.edits.answer_start import AnswerStarts
from ..editing.edits.prompts import PromptFormat
from ..editing.edits.tokenizer import Tokenizer
from ..editing.memories.row_form import RowForm
from ..editing.methods.registry import text_router
from ..editing.model.why import explained_text
from ..editing.profiling import scope
from ..editing.shown import shown
from ..editing.store.snapshots import Snapshot
from .errors import ServingError
from .folders import Folders
from .seen import Seen, change_known, seen_by
from .served_edits import Admission, Change, ReadAt, ServedEdit, name_of_all
from .settings import ServingSettings
from .store_reader import StoreReader
from .stores import write_status
from .watch import Watch
from .withdrawn import WithdrawnEdit, withdraw


class Catalogue:
    """The edits of all stores, by tenant, in versions.

    A request is decided once, when it is admitted, from its token ids: nothing that a stack does later with chunks,
    caches or preemption can change that. `read` and `undo` prepare a change in any thread; `publish` makes it the next
    version, at once for all requests that come after. A change that `stage` keeps waits for that: a roll-out has every
    replica ready before the first one turns.
    """

    def __init__(self, tokenizer: Tokenizer, settings: ServingSettings) -> None:
        self.tokenizer = tokenizer
        self.settings = settings
        self.version = 0
        self._lock = threading.RLock()
        self._reader = StoreReader(tokenizer, settings)
        self.header, self.config = self._reader.header, self._reader.config
        prompts = self.header["prompts"]
        self.prompts = PromptFormat(tokenizer, prompts["template"], prompts["chat"])
        self._starts = AnswerStarts(self.prompts, self.config.eos)
        self.watch = Watch()
        self._stores: dict[tuple[str | None, Path], list[ServedEdit]] = {}
        self._withdrawn: dict[tuple[str | None, Path], list[WithdrawnEdit]] = {}
        self._at: dict[tuple[str | None, Path], ReadAt] = {}
        self._staged: dict[tuple[str | None, Path], Change] = {}
        # By tenant: what the next version is made of, and what requests are decided by now, all tenants' at once.
        self._next: dict[str | None, Seen] = {}
        self._now: dict[str | None, Seen] = {}
        self._tenants: dict[str, None] = dict.fromkeys(settings.tenants)
        self._folders = Folders(settings)
        change = self.read([(None, path) for path in settings.edits])
        for tenant, paths in settings.tenants.items():
            change = self.read([(tenant, path) for path in paths], change)
        self.start = change
        self.publish(change)

    @property
    def weight_sample(self) -> Any:
        """A sample of the weights of the model that the edits were written for (`base.weight_sample`)."""
        return self._reader.weight_sample

    def edits_by_form(self) -> dict[RowForm, int]:
        """How many edits are served, by the form in which their folders keep rows: of every form that was read."""
        with self._lock:
            forms = self._reader.forms()
            keys: dict[RowForm, set[str]] = {form: set() for form in forms.values()}
            for (_, path), edits in self._stores.items():
                keys[forms[path]].update(edit.key for edit in edits)
        return {form: len(of_form) for form, of_form in keys.items()}

    # Changes

    def read(
        self,
        stores: Iterable[tuple[str | None, Path]],
        after: Change | None = None,
        snapshot: Snapshot | None = None,
    ) -> Change:
        """Read stores anew, or for the first time; the change that this makes to what is served, or to `after`.

        snapshot: as of which they are read; None: the one that the folder says is to be served, or as they are.
        """
        read = {} if after is None else dict(after.stores)
        withdrawn = {} if after is None else dict(after.withdrawn)
        at = {} if after is None else dict(after.at)
        stores = list(stores)
        if self.version:  # what the server was started with has its place
            self._check_limits(stores)
        for tenant, path in stores:
            staged = self._staged[tenant, path].stores if (tenant, path) in self._staged else {}
            held = [*self._stores.get((tenant, path), ()), *staged.get((tenant, path), ())]
            found = self._reader.read(path, tenant, snapshot, held)
            read[tenant, path], withdrawn[tenant, path], at[tenant, path] = found
        return self._changed(read, withdrawn, at)

    def stage(self, change: Change) -> None:
        """Keep a change, whose rows are here, until its stores change or it is dropped: it is not answered by yet."""
        with self._lock:
            self._staged |= dict.fromkeys(change.stores, change)

    def drop_staged(self, tenant: str | None, path: Path) -> None:
        """Let go of what was staged of a store, if anything was."""
        with self._lock:
            self._staged.pop((tenant, path), None)

    def _changed(
        self,
        read: dict[tuple[str | None, Path], list[ServedEdit]],
        withdrawn: dict[tuple[str | None, Path], list[WithdrawnEdit]],
        at: dict[tuple[str | None, Path], ReadAt],
        gone: frozenset[tuple[str | None, Path]] = frozenset(),
        tenants_gone: frozenset[str] = frozenset(),
    ) -> Change:
        with self._lock:
            before = {edit.key: edit for edits in self._stores.values() for edit in edits}
            future = {store: edits for store, edits in {**self._stores, **read}.items() if store not in gone}
        now = {edit.key: edit for edits in future.values() for edit in edits}
        added = [edit for key, edit in now.items() if key not in before]
        needed: dict[Path, dict[str, int]] = {}
        for edit in added:
            needed.setdefault(edit.store, {})[edit.key] = edit.stored.seq
        removed = [edit for key, edit in before.items() if key not in now]
        with self._lock:  # what is staged of other folders has its rows here too
            waiting = [change.stores[store] for store, change in self._staged.items() if store not in read]
        count = len({*now, *(edit.key for edits in waiting for edit in edits)})
        if added and self.settings.capacity is not None and count > self.settings.capacity:
            raise ServingError(
                f"There is no room for {count} edits: this server was started with a capacity of "
                f"{self.settings.capacity}.",
                507,
            )
        return Change(read, needed, added, removed, withdrawn, at, gone, tenants_gone)

    def _check_limits(self, stores: Iterable[tuple[str | None, Path]]) -> None:
        """Raise where stores that are new would be more, or of more tenants, than the settings allow."""
        with self._lock:
            folders = {*self._stores, *self._staged, *stores}
            tenants = {*self._tenants, *(tenant for tenant, _ in folders if tenant is not None)}
            for what, count, before, most in (
                ("tenants", len(tenants), len(self._tenants), self.settings.most_tenants),
                ("folders", len(folders), len(self._stores), self.settings.most_folders),
            ):
                if count > max(before, most):
                    raise ServingError(f"This server serves at most {most} {what}: take one out first.", 507)

    def unload(self, tenant: str | None, path: Path) -> Change:
        """The change after which a folder's edits are served to a tenant (None: as shared ones) no longer."""
        with self._lock:
            if (tenant, path) not in self._stores:
                raise ServingError(f"The folder {self.name_of(path)} is not served{_whose(tenant)}.", 404)
        return self._changed({}, {}, {}, frozenset({(tenant, path)}))

    def forget(self, tenant: str) -> Change:
        """The change after which there is no such tenant: its requests are refused, its folders are not served."""
        self._seen(tenant)
        with self._lock:
            gone = frozenset(store for store in self._stores if store[0] == tenant)
        return self._changed({}, {}, {}, gone, frozenset({tenant}))

    def undo(self, name: str, tenant: str | None, store: Path | None = None, author: str | None = None) -> Change:
        """Undo an edit that is served, in its store's ledger; the change that this makes."""
        return self._rewritten("undo", self._stores, name, tenant, store, author)

    def redo(self, name: str, tenant: str | None, store: Path | None = None, author: str | None = None) -> Change:
        """Put an undone edit of a store that is served in again, in its ledger; the change that this makes."""
        return self._rewritten("redo", self._withdrawn, name, tenant, store, author)

    def _rewritten(
        self,
        what: str,
        stores: Mapping[tuple[str | None, Path], Sequence[ServedEdit | WithdrawnEdit]],
        name: str,
        tenant: str | None,
        store: Path | None,
        author: str | None,
    ) -> Change:
        if self.settings.read_only or self.settings.signed_by is not None:
            raise ServingError(f"This server does not change stores: {what} the edit with `corrigenda {what}`.", 403)
        with self._lock:
            found = [
                (path, edit.id)
                for (of, path), edits in stores.items()
                for edit in edits
                if name in (edit.id, shown(edit.id)) and of == tenant and store in (None, path)
            ]
        if not found:
            there = "is served" if what == "undo" else "is undone"
            raise ServingError(f'No edit with the id "{shown(name)}" {there}{_whose(tenant)}.', 404)
        if len(found) > 1:
            raise ServingError(f'Edits with the id "{shown(name)}" are in several stores: name one as `store`.', 409)
        ((path, own),) = found
        self._check_not_fixed(path, what)
        write_status(path, what, own, author)
        with self._lock:
            readers = [key for key in self._stores if key[1] == path]
        return self.read(readers)

    def _check_not_fixed(self, path: Path, what: str) -> None:
        for (_, served), at in self._at.items():
            if served == path and at.fixed:
                raise ServingError(
                    f"The folder {self.name_of(path)} is served as its snapshot {at.snapshot}, by every server that it "
                    f"was rolled out to: {what} the edit with `corrigenda {what}`, and roll out what that makes.",
                    409,
                )

    def publish(self, change: Change) -> int:
        """Answer by a change from now on; the number of the new version."""
        with self._lock, scope("edit: swap"):
            before = self._stores, self._withdrawn, self._tenants, self._at
            self._stores = _without(change.gone, self._stores, change.stores)
            self._withdrawn = _without(change.gone, self._withdrawn, change.withdrawn)
            self._at = _without(change.gone, self._at, change.at)
            named = [*self._tenants, *(tenant for tenant, _ in self._stores if tenant is not None)]
            self._tenants = dict.fromkeys(name for name in named if name not in change.tenants_gone)
            version = self.version + 1
            tenants: list[str | None] = [None, *self._tenants]
            try:
                self._next = {tenant: self._seen_next(tenant, version) for tenant in tenants}
            except BaseException:
                self._stores, self._withdrawn, self._tenants, self._at = before
                self._next = {}  # some are half changed: the next version makes all anew
                raise
            self._now = {tenant: seen._replace(router=seen.router.view()) for tenant, seen in self._next.items()}
            self.version = version
            self._staged = _without(change.gone | change.stores.keys(), self._staged, {})
            self.watch.keep(self.keys())
            for tenant, path in change.stores:
                self._folders.belongs(path, tenant)
            # With those of before: a request in flight may still be told about by its edit's entry.
            held = [self._at, before[3], *(staged.at for staged in self._staged.values())]
            used = {(path, at.snapshot if at.fixed else None) for of in held for (_, path), at in of.items()}
            self._reader.open.keep(used)
            return version

    def _seen_next(self, tenant: str | None, version: int) -> Seen:
        """What a tenant's requests are answered by in a version of the stores that are served now."""
        before, wanted = self._next.get(tenant), seen_by(tenant, self._stores, self._reader.fact_of)
        if before is None or not before.edits:
            router, known = text_router(self.config, self.tokenizer), []
            if self._reader.background is not None:
                router.load_ground(self._reader.background)
        else:
            router, known = before.router, before.edits
        change_known(router, known, wanted)
        ours = (None, tenant)
        undone = [one for (owner, _), of_store in self._withdrawn.items() if owner in ours for one in of_store]
        withdraw(router, undone, [edit.stored for edit in wanted])
        at = [at.snapshot for (owner, _), at in self._at.items() if owner in ours]
        return Seen(router, wanted, version, name_of_all(at))

    # Questions

    def admit(self, prompt: Sequence[int], tenant: str | None = None) -> Admission:
        """Decide which edit answers a tokenised prompt of a tenant."""
        seen = self._seen(tenant)
        with scope("edit: route"):
            question = self.prompts.question(prompt)
            decision = seen.router.decide([question])
        route, nearest = int(decision.route[0]), int(decision.nearest[0])
        admission = Admission(
            seen.edits[route] if route >= 0 else None,
            seen.edits[nearest] if 0 <= nearest < len(seen.edits) else None,
            float(decision.score[0]),
            float(decision.margin[0]),
            seen.version,
            tenant,
            reason=seen.router.in_words(int(decision.against[0])) if route < 0 else None,
            plan=self._starts.plan(prompt, seen.edits[route]) if route >= 0 else None,
            snapshot=seen.snapshot,
        )
        self.watch.saw(question, admission)
        return admission

    def _seen(self, tenant: str | None) -> Seen:
        try:
            return self._now[tenant]
        except (KeyError, TypeError):
            raise ServingError(f'There is no tenant "{shown(str(tenant)[:100])}" here.', 400) from None

    def served(self, tenant: str | None = None) -> list[ServedEdit]:
        """The edits that a tenant's requests are answered by."""
        return list(self._seen(tenant).edits)

    def listing(self, tenant: str | None = None, everything: bool = False) -> dict[str, Any]:
        """The version, the tenants, and the edits: a tenant's own and the shared, or `everything`; which are undone."""
        if not everything:
            self._seen(tenant)
        with self._lock:
            stores = {of: edits for of, edits in self._stores.items() if everything or of[0] in (None, tenant)}
            edits = [
                {**edit.to_dict(self.name_of(path)), "answered": self.watch.answered(edit.key)}
                for (_, path), edits in stores.items()
                for edit in edits
            ]
            undone = [edit.to_dict(self.name_of(path), of) for of, path in stores for edit in self._withdrawn[of, path]]
            tenants = self.tenants() if everything else [] if tenant is None else [tenant]
            served = [
                {
                    "store": self.name_of(path),
                    "tenant": of,
                    "snapshot": str(self._at[of, path].snapshot),
                    "fixed": self._at[of, path].fixed,
                }
                for of, path in stores
            ]
            return {
                **{"version": self.version, "tenants": tenants, "stores": served},
                **{"edits": edits, "undone": undone},
            }

    def keys(self) -> set[str]:
        """Of all edits whose rows must be here: also those that nobody sees, for others of their facts hide them.

        They are seen again when those are undone, and no store is read for that.
        """
        with self._lock:
            staged = [edits for change in self._staged.values() for edits in change.stores.values()]
            return {edit.key for edits in (*self._stores.values(), *staged) for edit in edits}

    def folders(self) -> list[tuple[str | None, Path]]:
        """What is served: tenants (None: shared) and folders."""
        with self._lock:
            return list(self._stores)

    def tenants(self) -> list[str]:
        return [tenant for tenant in self._now if tenant is not None]

    def why(self, prompt: str, tenant: str | None = None, most: int = 5) -> dict[str, Any]:
        """The edits that come nearest to a prompt, best first, and whether one applies."""
        seen = self._seen(tenant)
        return explained_text(seen.router, self.prompts, self._starts, prompt, seen.edits, most)

    def without_paths(self, text: str) -> str:
        """A sentence with folders called what clients call them."""
        return self._folders.without_paths(text)

    def name_of(self, path: Path) -> str:
        """What a client calls a folder: its way from the root, or else its last part alone."""
        return self._folders.name_of(path)

    def allowed(self, folder: str, tenant: str | None = None) -> Path:
        """The folder that a request may have loaded for a tenant: one that it is served, or one under the root."""
        return self._folders.allowed(folder, tenant, self.folders())


def _whose(tenant: str | None) -> str:
    return "" if tenant is None else f' to the tenant "{tenant}"'


def _without(gone: frozenset[tuple[str | None, Path]], before: dict[Any, Any], new: dict[Any, Any]) -> dict[Any, Any]:
    return {store: value for store, value in {**before, **new}.items() if store not in gone}
