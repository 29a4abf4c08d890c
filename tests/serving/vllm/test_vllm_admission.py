"""The front end's part for vLLM, without vLLM: what is decided for a request when it comes."""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType, SimpleNamespace

import pytest
from served import SHARED
from tiny import tiny_tokenizer

from corrigenda.serving.vllm.keys import CONFIG


@pytest.fixture
def admissions(monkeypatch, folders):
    """An engine's admissions with the tenants "acme" and 'acme", "', over stand-ins for what they import of vLLM."""
    names = {"exceptions": "VLLMValidationError", "logger": "init_logger", "sampling_params": "BeamSearchParams"}
    for name, attribute in names.items():
        module = ModuleType(f"vllm.{name}")
        setattr(module, attribute, type(attribute, (ValueError,), {"info": lambda *given: None}))
        monkeypatch.setitem(sys.modules, f"vllm.{name}", module)
    monkeypatch.setitem(sys.modules, "vllm", ModuleType("vllm"))
    monkeypatch.delitem(sys.modules, "corrigenda.serving.vllm.admission", raising=False)
    admission = import_module("corrigenda.serving.vllm.admission")
    nothing = SimpleNamespace(changed=lambda *given: None, admitted=lambda *given: None)
    monkeypatch.setattr(admission, "Metrics", lambda: nothing)
    monkeypatch.setattr(admission, "load_tokenizer", lambda name: tiny_tokenizer())
    settings = {"edits": str(folders / "shared"), "tenants": {"acme": [], 'acme", "': []}}
    model = SimpleNamespace(tokenizer="tiny", model=None)
    yield admission.Admissions(SimpleNamespace(model_config=model, additional_config={CONFIG: settings}))
    sys.modules.pop("corrigenda.serving.vllm.admission")


def request(admissions, prompt, tenant=None, salt=None):
    prompts = admissions.catalogue.prompts
    return SimpleNamespace(
        sampling_params=SimpleNamespace(extra_args={"tenant": tenant} if tenant else None),
        prompt_token_ids=prompts.encode(prompts.wrap(prompt)),
        cache_salt=salt,
    )


def test_no_salt_is_another_tenants(admissions):
    def salt(tenant, given):
        asking = request(admissions, "Why is the sky blue?", tenant, given)
        admissions.admit(asking)
        return asking.cache_salt

    tenants, given = (None, "acme", 'acme", "'), [None, "", "null", "corrigenda:acme:", 'x", "y']
    given += [salt("acme", None), salt("acme", "x")]
    salts = {salt(tenant, one) for tenant in tenants for one in given}
    assert len(salts) == len(tenants) * len(given) and salt(None, None) is None
    assert salt("acme", "x") == salt("acme", "x")


def test_requests_of_one_name_hold_their_own_edits(admissions, monkeypatch):
    first, second, plain = (
        admissions.admit(request(admissions, prompt))
        for prompt in (SHARED[0].prompt, SHARED[1].prompt, "Why is the sky blue?")
    )
    admission = sys.modules["corrigenda.serving.vllm.admission"]
    monkeypatch.setattr(admission, "_GRACE", 0.0)
    for number, decided in enumerate((first, second, plain)):
        admissions.remember("x", f"x-{number}", decided)
    running = SimpleNamespace(request_states={"x-0": 1, "x-2": 1}, parent_requests={"x-1": 1})
    assert admissions.pinned(running) == {first.key, second.key}
    assert admissions.of("x") == plain and admissions.of("y") is None
    monkeypatch.setattr(admission, "_REMEMBERED", 3)
    admissions.remember("y", "y-0", second)
    assert admissions.pinned(running) == {second.key} and admissions.of("x") == plain
    for number in range(3):
        admissions.remember("z", f"z-{number}", first)
    assert admissions.of("x") is None and admissions.of("z") == first and set(admissions._inner) == {"z"}
