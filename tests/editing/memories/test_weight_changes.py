"""Changes of weights at several places: read, written, viewed, and the router that lets them answer everything."""

import pytest
import torch
from cases import assert_close, exact, normal, same_bits

from corrigenda.editing.memories.weight_changes import WeightChanges
from corrigenda.editing.routers.always import AlwaysOn

SHAPES = {"0.mlp.down_proj": (33, 16), "2.mlp.up_proj": (16, 40)}


def changes(edits=3):
    memory = WeightChanges(SHAPES, dict.fromkeys(SHAPES, torch.device("cpu")))
    for edit in range(edits):
        for site, (width, out) in SHAPES.items():
            memory.add(site, normal(2, width, seed=edit), normal(2, out, seed=10 + edit))
    return memory


@pytest.mark.parametrize("site", SHAPES)
def test_a_part_adds_the_sum_of_its_products_where_a_route_is(site):
    width, out = SHAPES[site]
    x, base = normal(5, width, seed=20), normal(5, out, seed=21)
    found = base.clone()
    route = torch.tensor([0, -1, 7, -1, 0], dtype=torch.int32)
    changes().part(site).read_(found, x, route, torch.zeros(5, dtype=torch.bool))
    expected = exact(base).copy()
    for edit in range(3):
        expected += exact(x) @ exact(normal(2, width, seed=edit)).T @ exact(normal(2, out, seed=10 + edit))
    routed = route >= 0
    assert_close(found[routed], expected[routed.numpy()])
    assert same_bits(found[~routed], base[~routed])


def test_while_applied_a_forward_is_that_of_changed_weights_and_has_their_gradient():
    memory, linear = changes(), torch.nn.Linear(33, 16)
    x = normal(4, 33, seed=3).requires_grad_()
    with memory.applied({"0.mlp.down_proj": linear}):
        memory.add("0.mlp.down_proj", torch.ones(1, 33), torch.ones(1, 16))  # shows at once
        linear(x).sum().backward()
        found = linear(x)
    changed = linear.weight.double() + memory.matrices["0.mlp.down_proj"].T.double()
    assert_close(found, exact(x.double() @ changed.T + linear.bias.double()))
    assert_close(x.grad, exact(changed.sum(0).expand(4, -1)))
    assert torch.equal(linear(x), torch.nn.functional.linear(x, linear.weight, linear.bias))


def test_a_view_and_a_copy_keep_what_they_had():
    memory = changes()
    before = {name: matrix.clone() for name, matrix in memory.matrices.items()}
    view, copied = memory.view(), memory.copy()
    memory.reset()
    copied.add("0.mlp.down_proj", torch.ones(1, 33), torch.ones(1, 16))
    assert all(same_bits(view.matrices[name], matrix) for name, matrix in before.items())
    assert not any(matrix.any() for matrix in memory.matrices.values())
    assert memory.norms() == {"norm": 0.0, "largest_matrix": 0.0}


def test_every_request_is_answered_once_there_is_an_edit():
    router = AlwaysOn()
    assert router.decide(["a", "b"]).route.tolist() == [-1, -1]
    router.add_fingerprints(router.fingerprints_of(["x"]))
    decision = router.decide(["a", "b"])
    assert decision.route.tolist() == [0, 0] and (decision.margin > 0).all() and decision.nearest.tolist() == [-1, -1]
    router.remove({0})
    assert router.decide(["a"]).route.tolist() == [-1]
    assert not router.fits(torch.ones(1, dtype=torch.int32))
