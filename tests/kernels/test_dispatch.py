"""Which backend runs, what happens when one is asked for by name, and what the doctor is told."""

import importlib.util

import pytest
import torch

from corrigenda.kernels import dispatch, native, ops, reference

QUERY = torch.ones(2, 3, dtype=torch.int32)


def fresh_dispatch():
    """A second copy of dispatch.py, which reads the environment anew."""
    spec = importlib.util.spec_from_file_location("corrigenda.kernels.dispatch_again", dispatch.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_op_lists_every_backend_in_order():
    assert set(dispatch.TABLE) == {op for op in dir(torch.ops.corrigenda) if callable(getattr(ops, op, None))}
    for op, rows in dispatch.TABLE.items():
        backends = ["native", "reference"] if op == "label_losses" else ["native", "triton", "reference"]
        assert [row.backend for row in rows] == backends
        assert set(dispatch.CHOICES) >= {"auto", *backends}


def test_auto_takes_the_first_backend_that_accepts(monkeypatch):
    ran = []

    def row(backend, reason, pays=True):
        return dispatch.Row(
            *(backend, lambda *given: ran.append(backend), lambda device: "", lambda *given: reason),
            lambda *given: pays,
        )

    rows = (row("native", "it only takes 7 words"), row("triton", "", False), row("reference", ""))
    monkeypatch.setitem(dispatch.TABLE, "mask_overlap", rows)
    with dispatch.use("auto"):
        dispatch.run("mask_overlap", QUERY, QUERY, None, None, None)
    with dispatch.use("reference"):
        dispatch.run("mask_overlap", QUERY, QUERY, None, None, None)
    with dispatch.use("triton"):
        dispatch.run("mask_overlap", QUERY, QUERY, None, None, None)
    assert ran == ["reference", "reference", "triton"]
    with (
        dispatch.use("native"),
        pytest.raises(RuntimeError, match=r"mask_overlap cannot run on backend 'native': it only takes 7 words"),
    ):
        ops.mask_overlap(QUERY, QUERY)


def test_predicates_see_the_arguments(monkeypatch):
    def declines(query, *others):
        return "" if query.shape[0] > 1 else "one query is too few"

    rows = (
        dispatch.Row("triton", lambda *arguments: "triton", lambda device: "", declines),
        *dispatch.TABLE["mask_overlap"][2:],
    )
    monkeypatch.setitem(dispatch.TABLE, "mask_overlap", rows)
    with dispatch.use("auto"):
        assert dispatch.run("mask_overlap", QUERY, QUERY, None, None, None) == "triton"
        assert dispatch.run("mask_overlap", QUERY[:1], QUERY, None, None, None) != "triton"


def test_a_backend_that_is_absent_raises_its_reason(monkeypatch):
    row = dispatch.Row("native", None, lambda device: f"nothing is built for {device}")
    monkeypatch.setitem(dispatch.TABLE, "mask_overlap", (row, *dispatch.TABLE["mask_overlap"][1:]))
    with (
        dispatch.use("native"),
        pytest.raises(RuntimeError, match=r"^mask_overlap cannot run on backend 'native': nothing is built for cpu$"),
    ):
        ops.mask_overlap(QUERY, QUERY)
    assert "native" not in dispatch.impls("mask_overlap")


def test_a_backend_that_is_absent_is_not_asked_whether_it_pays(monkeypatch):
    absent = dispatch.Row("native", None, lambda device: "it is not built", pays=lambda *given: pytest.fail("asked"))
    monkeypatch.setitem(dispatch.TABLE, "mask_overlap", (absent, *dispatch.TABLE["mask_overlap"][1:]))
    with dispatch.use("auto"):
        assert ops.mask_overlap(QUERY, QUERY)[0].tolist() == [0, 0]


def test_doubles_run_on_the_reference_alone():
    y, x, memory = torch.ones(1, 2).double(), torch.ones(1, 32).double(), torch.ones(32, 2).double()
    arguments = (y, x, memory, torch.ones(1, 1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32))
    assert ops.masked_linear(*arguments).tolist() == [[2.0, 2.0]]
    for row in dispatch.TABLE["masked_linear"]:
        assert row.declines(*arguments) == (
            "" if row.backend == "reference" else "float64 is for the reference backend"
        )


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


def test_an_op_without_kernels_for_a_gpu_says_so(monkeypatch):
    monkeypatch.setitem(native._absent, "cuda", "")
    native_row, _ = dispatch.TABLE["label_losses"]
    assert native_row.absent("cuda") == "it has no kernels for cuda tensors"
    assert dispatch.TABLE["delta_linear"][0].absent("cuda") == ""
    assert list(dispatch.impls("label_losses", "cuda")) == ["reference"]
    arguments = torch.ones(1, 2), torch.ones(3, 2), torch.zeros(1, dtype=torch.int64)
    with dispatch.use("triton"), pytest.raises(RuntimeError, match=r"'triton': it has no such kernels$"):
        ops.label_losses(*arguments)


def test_libraries_from_before_an_op_say_so(monkeypatch):
    """They are there, load, and lack it: another backend runs, and the report says what to do."""
    monkeypatch.setattr(native, "_absent", {"cpu": "", "cuda": ""})
    (row, *_) = dispatch._rows("token_overlap")
    assert row.absent("cpu") == "" or not hasattr(torch.ops.corrigenda_native, "token_overlap")
    assert "install the project again" in native.lacks("an_op_to_come")


def test_unknown_names_are_refused(monkeypatch):
    with (
        pytest.raises(ValueError, match=r"one of auto, .* not 'cuda'"),
        dispatch.use("cuda"),
    ):
        pass
    monkeypatch.setenv("CORRIGENDA_BACKEND", "tritn")
    module = fresh_dispatch()  # an import never fails
    for attempt in (module.chosen, lambda: module.run("delta_linear", torch.ones(1, 1))):
        with pytest.raises(module.BackendError, match=r"^CORRIGENDA_BACKEND must be one of auto, .* not 'tritn'$"):
            attempt()


def test_environment_is_read_at_import(monkeypatch):
    monkeypatch.setenv("CORRIGENDA_BACKEND", "reference")
    module = fresh_dispatch()
    monkeypatch.setenv("CORRIGENDA_BACKEND", "native")
    assert module._choice == "reference"


def test_report_tells_what_is_live_and_why_the_rest_is_not():
    states = dispatch.report()
    assert len(states) == sum(map(len, dispatch.TABLE.values()))
    for op, backend, live, reason in states:
        assert live == (backend in dispatch.impls(op))
        assert live != bool(reason)
    assert all(dispatch.impls(op)["reference"] is getattr(reference, op) for op in dispatch.TABLE)
    assert all(not state.live and state.reason for state in dispatch.report("meta") if state.backend != "reference")
