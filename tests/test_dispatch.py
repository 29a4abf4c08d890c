"""Which backend runs, what happens when one is asked for by name, and what the doctor is told."""

import importlib.util

import pytest
import torch

from corrigenda.kernels import dispatch, ops, reference

QUERY = torch.ones(2, 3, dtype=torch.int32)


def fresh_dispatch():
    """A second copy of dispatch.py, which reads the environment anew."""
    spec = importlib.util.spec_from_file_location("corrigenda.kernels.dispatch_again", dispatch.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_lists_every_backend_in_order():
    assert set(dispatch.TABLE) == {op for op in dir(torch.ops.corrigenda) if callable(getattr(ops, op, None))}
    for rows in dispatch.TABLE.values():
        assert [row.backend for row in rows] == ["native", "triton", "reference"]
        assert set(dispatch.CHOICES) == {"auto", *(row.backend for row in rows)}


def test_auto_takes_the_first_backend_that_accepts(monkeypatch):
    ran = []

    def row(backend, verdict):
        return dispatch.Row(backend, lambda *arguments: ran.append(backend), lambda *arguments: verdict)

    rows = (row("native", "it only takes 7 words"), row("triton", True), row("reference", True))
    monkeypatch.setitem(dispatch.TABLE, "mask_overlap", rows)
    with dispatch.use("auto"):
        dispatch.run("mask_overlap", QUERY, QUERY, None, None, None)
    with dispatch.use("reference"):
        dispatch.run("mask_overlap", QUERY, QUERY, None, None, None)
    assert ran == ["triton", "reference"]
    with (
        dispatch.use("native"),
        pytest.raises(RuntimeError, match=r"mask_overlap cannot run on backend 'native': it only takes 7 words"),
    ):
        ops.mask_overlap(QUERY, QUERY)


def test_predicates_see_the_arguments(monkeypatch):
    def supports(query, *others):
        return True if query.shape[0] > 1 else "one query is too few"

    rows = (
        dispatch.Row("triton", lambda *arguments: "triton", supports),
        *dispatch.TABLE["mask_overlap"][2:],
    )
    monkeypatch.setitem(dispatch.TABLE, "mask_overlap", rows)
    with dispatch.use("auto"):
        assert dispatch.run("mask_overlap", QUERY, QUERY, None, None, None) == "triton"
        assert dispatch.run("mask_overlap", QUERY[:1], QUERY, None, None, None) != "triton"


@pytest.mark.parametrize("op", dispatch.TABLE)
def test_a_backend_that_is_absent_raises_its_reason(op):
    for row in dispatch.TABLE[op]:
        if row.function is None:
            with dispatch.use(row.backend), pytest.raises(RuntimeError) as raised:
                dispatch.run(op)
            assert str(raised.value) == f"{op} cannot run on backend {row.backend!r}: {row.supports()}"


def test_use_nests_and_restores():
    def choice():
        return dispatch._choice

    before = choice()
    with dispatch.use("native"):
        with dispatch.use("reference"):
            assert choice() == "reference"
        assert choice() == "native"
        with pytest.raises(KeyError), dispatch.use("auto"):
            raise KeyError
        assert choice() == "native"
    assert choice() == before


def test_unknown_names_are_refused(monkeypatch):
    with (
        pytest.raises(ValueError, match=r"one of auto, .* not 'cuda'"),
        dispatch.use("cuda"),
    ):
        pass
    monkeypatch.setenv("CORRIGENDA_BACKEND", "tritn")
    with pytest.raises(ValueError, match=r"^CORRIGENDA_BACKEND must be one of"):
        fresh_dispatch()


def test_environment_is_read_at_import(monkeypatch):
    monkeypatch.setenv("CORRIGENDA_BACKEND", "native")
    module = fresh_dispatch()
    monkeypatch.setenv("CORRIGENDA_BACKEND", "reference")
    with pytest.raises(RuntimeError, match="cannot run on backend 'native'"):
        module.run("mask_overlap", QUERY, QUERY, None, None, None)
    with module.use("reference"):
        module.run("mask_overlap", QUERY, QUERY, None, None, None)


def test_report_tells_what_is_live_and_why_the_rest_is_not():
    states = dispatch.report()
    assert len(states) == 3 * len(dispatch.TABLE)
    for op, backend, live, reason in states:
        assert live == (backend in dispatch.impls(op))
        assert live != bool(reason)
    assert all(dispatch.impls(op)["reference"] is getattr(reference, op) for op in dispatch.TABLE)
