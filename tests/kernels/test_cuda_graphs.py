"""On a GPU: every op, and a whole patched layer, captured in a CUDA graph and replayed on other inputs.

A capture fails at any wait for the host, so one that succeeds shows that there is none.
"""

import copy

import numpy as np
import pytest
import torch
from cases import same_bits
from op_arguments import arguments, flat
from served import SHARED, store
from tiny import tiny_model, tiny_tokenizer

from corrigenda.editing import Edit, EditedModel
from corrigenda.editing.backbone import repeated
from corrigenda.editing.methods.registry import config_for
from corrigenda.editing.model.layer import EditedOutput
from corrigenda.editing.routers.context import RoutingContext
from corrigenda.editing.routers.masks import MaskRouter
from corrigenda.kernels import dispatch
from corrigenda.serving import Catalogue, ServedMemory, ServingSettings, Slots

pytestmark = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")]

BACKENDS = [
    pytest.param(op, backend, id=f"{op}-{backend}")
    for op in dispatch.TABLE
    for backend in dispatch.impls(op, "cuda")
    if backend != "reference"  # it loops over routes on the host
]


def on_gpu(values):
    return [value.cuda() if isinstance(value, torch.Tensor) else value for value in values]


def capture(run):
    """A graph of `run`, and what it returned while it was captured; warmed up on a side stream, as torch asks."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            run()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = run()
    return graph, outputs


@pytest.mark.parametrize("op, backend", BACKENDS)
def test_replays_equal_a_fresh_call(op, backend):
    """The inputs are overwritten in place between capture and replay; no output may be left from the capture."""
    given, other = on_gpu(arguments(op)), on_gpu(arguments(op))
    for value in other:
        if isinstance(value, torch.Tensor) and value.is_floating_point() and value.dim() > 1:
            value.mul_(-0.5)
    function = getattr(torch.ops.corrigenda, op).default
    in_place = op.endswith("_")

    def run():
        outputs = function(*given)
        return [given[0]] if in_place else flat(outputs)

    with dispatch.use(backend), torch.no_grad():
        graph, outputs = capture(run)
        for value, new in zip(given, other):
            if isinstance(value, torch.Tensor):
                value.copy_(new)
        graph.replay()
        torch.cuda.synchronize()
        replayed = [output.clone() for output in outputs]
        fresh = function(*other)
    for expected, actual in zip([other[0]] if in_place else flat(fresh), replayed, strict=True):
        assert same_bits(expected.cpu(), actual.cpu())


def test_a_decision_beside_withdrawn_edits_is_captured():
    router = MaskRouter(512, 146, threshold=0.4, device="cuda")
    features = torch.randn(4, 512, device="cuda")
    masks = router.mask(features)
    router.add(masks[:2])
    nearer = router.mask(features[:1] + 0.6 * features[2:3])
    router.withdraw(["x"], list(nearer.cpu()), [2], [0, 1])
    query = masks[:1].clone()
    graph, decision = capture(lambda: router.decide(query))
    for asked, withdrawn in ((masks[:1], -1), (nearer, 0), (masks[1:2], -1)):
        query.copy_(asked)
        graph.replay()
        torch.cuda.synchronize()
        fresh = router.decide(asked)
        assert all(same_bits(a.cpu(), b.cpu()) for a, b in zip(decision, fresh))
        assert fresh.withdrawn.tolist() == [withdrawn]


def test_a_patched_layer_is_captured():
    """One graph serves routed and unrouted tokens: routes are read from the context's buffers on the device."""
    model = tiny_model().cuda()
    edited = EditedModel.wrap(model, tiny_tokenizer())
    edited.edit([Edit("Who runs the mill?", "Ada Byron"), Edit("Where is the mill?", "Upton")])
    layer = edited.decoder.down_proj(edited.config.layer)
    context = edited.context
    context.start(torch.tensor([0, -1], dtype=torch.int32, device="cuda"))
    length = 3
    context.fill(
        torch.ones(2, length, dtype=torch.bool, device="cuda"),
        torch.tensor([[True, False, False]] * 2, device="cuda"),
        torch.ones(2, length, device="cuda"),
        deciding=False,
    )
    x = torch.randn(2, length, layer.in_features, device="cuda")
    with torch.no_grad():
        graph, out = capture(lambda: layer(x))
        for routes in ([0, -1], [1, 0], [-1, -1]):
            context.routes.copy_(torch.tensor(routes))
            graph.replay()
            torch.cuda.synchronize()
            expected, base = layer(x), layer.forward(x)
            assert same_bits(out.cpu(), expected.cpu())
            for row, route in enumerate(routes):
                assert same_bits(expected[row].cpu(), base[row].cpu()) == (route < 0)
    edited.detach()


def test_a_served_layer_follows_edits_that_come_after_its_capture(tmp_path, few_background_prompts):
    """Captured before there was an edit, as a server does; rows, routes and passes change in place."""
    folder = store(tmp_path / "edits", SHARED)
    catalogue = Catalogue(tiny_tokenizer(), ServingSettings.parse(folder))
    base = tiny_model().model.layers[catalogue.config.layer].mlp.down_proj.cuda()
    device = torch.device("cuda")
    memory = ServedMemory(catalogue.config, (base.in_features, base.out_features), device, torch.float32)
    memory.reserve(8)
    context = RoutingContext(device)
    slots = Slots(context, 4, 16)
    layer = copy.deepcopy(base)
    layer.register_forward_hook(EditedOutput(memory.banks, context))
    x = torch.randn(6, base.in_features, device="cuda")
    with torch.no_grad():
        graph, out = capture(lambda: layer(x))
        (edits,) = catalogue.start.needed.values()
        memory.load(folder, edits)
        slots.start("edited", 3, memory.place(next(iter(edits))))
        slots.start("plain", 2, -1)
        for requests, past, lengths, routed in (
            (["plain", "edited"], [0, 0], [2, 3], [4]),
            (["edited", "plain"], [3, 2], [1, 1], [0]),
            (["plain"], [3], [1], []),
        ):
            slots.describe(requests, np.array(past), np.array(lengths))
            graph.replay()
            torch.cuda.synchronize()
            assert same_bits(out.cpu(), layer(x).cpu())
            for token in range(len(x)):
                assert same_bits(out[token].cpu(), base(x)[token].cpu()) == (token not in routed)


@pytest.mark.parametrize("method", ["associative", "memoir", "wise-merge"])
def test_an_edit_whose_steps_are_a_graph_is_the_eager_one(method, monkeypatch):
    """Two edits one after the other share a pool: the second's graph is made where the first's was."""
    captured, inner = [], repeated.Repeated._captured

    def counted(self):
        captured.append(inner(self))
        return captured[-1]

    monkeypatch.setattr(repeated.Repeated, "_captured", counted)
    edits = [Edit("The capital of Zubrowka is", "Lutz City"), Edit("Who founded the Krellin museum?", "Anna Blom")]
    rate = {"relative_rate": 0.02, "retries": 0} if method == "associative" else {}
    config = config_for(method, contexts=2, steps=12, batch_size=1, **rate)
    edited = EditedModel.wrap(tiny_model().cuda(), tiny_tokenizer(), config)
    edited.method.prepare()
    solved = [edited.method.solve([edit])[0] for edit in edits]
    assert len(captured) == 2 and all(captured), "no step was captured"
    with repeated.eager():
        expected = [edited.method.solve([edit])[0] for edit in edits]
    assert len(captured) == 2
    for (written, record), (of_eager, eager_record) in zip(solved, expected, strict=True):
        assert (written.steps, written.held) == (of_eager.steps, of_eager.held)
        for name, tensor in eager_record.tensors.items():
            torch.testing.assert_close(record.tensors[name], tensor, rtol=1e-5, atol=1e-6)
