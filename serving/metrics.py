"""Counters of routing for Prometheus, in the process that admits requests; without prometheus_client there are none."""

from __future__ import annotations

from typing import Any

try:
    import prometheus_client
except ImportError:
    prometheus_client = None

from .catalogue import Admission, Catalogue

_MARGINS = (-0.4, -0.3, -0.2, -0.1, -0.05, 0.0, 0.05, 0.1, 0.2, 0.3, 0.4, 0.6)
"""A margin is the score less what it takes to be applied: between -0.5 and 0.6."""


class Metrics:
    """What a server counts of its edits, in the registry that its stack shows.

    corrigenda_requests_total{outcome="edited"|"base"|"refused", tenant}, corrigenda_route_margin (a histogram of the
    best match's margin), corrigenda_edits{tenant}, corrigenda_version, corrigenda_changes_total{kind}.
    """

    def __init__(self, registry: Any = None) -> None:
        self._known: list[Any] = []
        if prometheus_client is None:
            return
        registry = prometheus_client.REGISTRY if registry is None else registry
        options = {"registry": registry}
        self._requests = prometheus_client.Counter(
            "corrigenda_requests", "Requests by what answers them", ["outcome", "tenant"], **options
        )
        self._margin = prometheus_client.Histogram(
            "corrigenda_route_margin", "How far the best match stands above the threshold", buckets=_MARGINS, **options
        )
        self._edits = prometheus_client.Gauge("corrigenda_edits", "Edits that are served", ["tenant"], **options)
        self._version = prometheus_client.Gauge("corrigenda_version", "Version of the served edits", **options)
        self._changes = prometheus_client.Counter("corrigenda_changes", "Edits added and removed", ["kind"], **options)
        self._registry = registry
        self._known = [self._requests, self._margin, self._edits, self._version, self._changes]

    def admitted(self, admission: Admission) -> None:
        """Count a request."""
        if self._known:
            outcome = "base" if admission.edit is None else "edited"
            self._requests.labels(outcome, admission.tenant or "").inc()
            self._margin.observe(admission.margin)

    def refused(self) -> None:
        """Count a request that named a tenant which is not there."""
        if self._known:
            self._requests.labels("refused", "").inc()

    def changed(self, catalogue: Catalogue, added: int, removed: int) -> None:
        """Count a change, and show what is served now."""
        if not self._known:
            return
        self._changes.labels("added").inc(added)
        self._changes.labels("removed").inc(removed)
        self._version.set(catalogue.version)
        for tenant in (None, *catalogue.tenants()):
            self._edits.labels(tenant or "").set(len(catalogue.served(tenant)))

    def close(self) -> None:
        """Take the counters out of the registry."""
        for metric in self._known:
            self._registry.unregister(metric)
        self._known = []
