"""Counters of routing for Prometheus, in the process that admits requests; without prometheus_client there are none."""

from __future__ import annotations

import contextlib
import functools
from typing import Any, NamedTuple

try:
    import prometheus_client
except ImportError:
    prometheus_client = None

from ..editing.memories.paged_banks import PagingCounts
from .catalogue import Catalogue
from .served_edits import Admission

_MARGINS = (-0.4, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
"""A margin is the score less what it takes to be applied: between -0.5 and 0.6."""


_OUTCOMES = ("edited", "base", "lost", "unsaid", "refused")


class _Collectors(NamedTuple):
    requests: Any
    margin: Any
    stages: Any
    edits: Any
    version: Any
    changes: Any
    rows: Any
    forms: Any


@functools.cache
def _collectors(registry: Any) -> _Collectors:
    """Those of a registry, made once: engines of one process count together."""
    made = {"registry": registry}
    return _Collectors(
        prometheus_client.Counter(
            "corrigenda_requests", "Requests by what answers them", ["outcome", "tenant"], **made
        ),
        prometheus_client.Histogram(
            "corrigenda_route_margin", "How far the best match stands above the threshold", buckets=_MARGINS, **made
        ),
        prometheus_client.Counter(
            "corrigenda_route_stages", "Requests by where in routing they were decided", ["stage"], **made
        ),
        prometheus_client.Gauge("corrigenda_edits", "Edits that are served", ["tenant"], **made),
        prometheus_client.Gauge("corrigenda_version", "Version of the served edits", **made),
        prometheus_client.Counter("corrigenda_changes", "Edits added and removed", ["kind"], **made),
        prometheus_client.Gauge("corrigenda_rows", "What became of edits' rows that were asked for", ["kind"], **made),
        prometheus_client.Gauge("corrigenda_row_forms", "Edits that are served, by form of rows", ["form"], **made),
    )


def exposition() -> tuple[bytes, str] | None:
    """What Prometheus reads of this process, and its media type; None without prometheus_client."""
    if prometheus_client is None:
        return None
    return prometheus_client.generate_latest(), prometheus_client.CONTENT_TYPE_LATEST


class Metrics:
    """What a server counts of its edits, in the registry that its stack shows.

    corrigenda_requests_total{outcome="edited"|"base"|"lost"|"unsaid"|"refused", tenant} ("lost": an edit's rows were
    missing; "unsaid": of those counted as edited, answers that a grammar or a banned token let not be the edit's),
    corrigenda_route_margin (a histogram of the best match's margin), corrigenda_route_stages_total{stage} (where
    requests are decided: "no_candidate", "too_far", "asks_otherwise" (another question about a subject), "edit"),
    corrigenda_edits{tenant}, corrigenda_row_forms{form} (edits by `RowForm.in_words`), corrigenda_version,
    corrigenda_changes_total{kind}, and where edits make room for others
    corrigenda_rows{kind="hits"|"reads"|"evictions"|"bytes_read"} (`PagingCounts`).
    """

    def __init__(self, registry: Any = None) -> None:
        self._to: _Collectors | None = None
        self._shown: set[str] = set()  # tenants that there are numbers of
        if prometheus_client is not None:
            self._to = _collectors(prometheus_client.REGISTRY if registry is None else registry)

    def admitted(self, admission: Admission) -> None:
        """Count a request."""
        if self._to is not None:
            outcome = "lost" if admission.lost else "base" if admission.edit is None else "edited"
            self._to.requests.labels(outcome, admission.tenant or "").inc()
            self._to.margin.observe(admission.margin)
            self._to.stages.labels(_stage(admission)).inc()

    def paged(self, counts: PagingCounts) -> None:
        """Say what paging has done by now."""
        if self._to is not None:
            for kind, count in vars(counts).items():
                self._to.rows.labels(kind).set(count)

    def lost(self, count: int) -> None:
        """Count requests whose edit was found, but could not answer."""
        if self._to is not None:
            self._to.requests.labels("lost", "").inc(count)

    def unsaid(self, admission: Admission) -> None:
        """Count an answer that was not its edit's."""
        if self._to is not None:
            self._to.requests.labels("unsaid", admission.tenant or "").inc()

    def refused(self) -> None:
        """Count a request that named a tenant which is not there."""
        if self._to is not None:
            self._to.requests.labels("refused", "").inc()

    def changed(self, catalogue: Catalogue, added: int, removed: int) -> None:
        """Count a change, and show what is served now."""
        if self._to is None:
            return
        self._to.changes.labels("added").inc(added)
        self._to.changes.labels("removed").inc(removed)
        self._to.version.set(catalogue.version)
        for form, count in catalogue.edits_by_form().items():
            self._to.forms.labels(form.in_words).set(count)
        there = catalogue.tenants()
        for tenant in self._shown.difference(there):  # names that clients made up must not pile up here
            self._shown.discard(tenant)
            for metric, labels in ((self._to.edits, [()]), (self._to.requests, [(name,) for name in _OUTCOMES])):
                for before in labels:
                    with contextlib.suppress(KeyError):
                        metric.remove(*before, tenant)
        self._shown.update(there)
        for owner in (None, *there):
            self._to.edits.labels(owner or "").set(len(catalogue.served(owner)))


def _stage(admission: Admission) -> str:
    """Where in routing a request was decided."""
    if admission.edit is not None or admission.lost:
        return "edit"
    if admission.nearest is None:
        return "no_candidate"
    return "too_far" if admission.reason is None else "asks_otherwise"
