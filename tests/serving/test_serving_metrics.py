"""What a server counts of its edits."""

from __future__ import annotations

import pytest
from served import OF_ACME, SHARED, store
from tiny import tiny_tokenizer

from corrigenda.serving import Catalogue, ServingSettings
from corrigenda.serving.metrics import Metrics

prometheus_client = pytest.importorskip("prometheus_client")
pytestmark = pytest.mark.usefixtures("few_background_prompts")


def test_what_is_counted(tmp_path):
    shared, acme = store(tmp_path / "shared", SHARED), store(tmp_path / "acme", OF_ACME)
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse({"edits": shared, "tenants": {"acme": acme}}))
    registry = prometheus_client.CollectorRegistry()
    # A second engine of the process counts into the same.
    for metrics, prompt, tenant in (
        (Metrics(registry), "What does Kmelt make?", None),
        (Metrics(registry), "Who leads Vantrello Foods?", "acme"),
        (Metrics(registry), "Why is the sky blue?", None),
    ):
        metrics.admitted(catalogue.admit(catalogue.prompts.encode(catalogue.prompts.wrap(prompt)), tenant))
    metrics.refused()
    metrics.changed(catalogue, 5, 1)
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in registry.collect()
        for sample in family.samples
    }
    assert found["corrigenda_requests_total", "edited", ""] == 1
    assert found["corrigenda_requests_total", "edited", "acme"] == 1
    assert found["corrigenda_requests_total", "base", ""] == 1
    assert found["corrigenda_requests_total", "refused", ""] == 1
    assert found["corrigenda_route_margin_count",] == 3 and found["corrigenda_route_margin_bucket", "0.0"] == 1
    assert found["corrigenda_edits", ""] == 3 and found["corrigenda_edits", "acme"] == 4
    assert found["corrigenda_version",] == 1
    assert found["corrigenda_changes_total", "added"] == 5 and found["corrigenda_changes_total", "removed"] == 1
