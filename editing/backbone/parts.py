"""A base model in parts: its weights are split over processes, as transformers does by `tp_plan="auto"`.

Every process runs the same program, and holds a part of each split weight. A down-projection's input comes in parts,
and its output whole: the parts' products are summed before any hook sees them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import CorrigendaError

T = TypeVar("T")


class Parts:
    """The processes that hold the parts of one model: a group in which each does the same, in the same order.

    What they must not differ in, the first one says: which edit answers, what was solved, when it was written.
    """

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size = group.rank(), group.size()

    def whole(self, x: Tensor, width: int) -> Tensor:
        """`[..., width]` of this process's part of the last dimension: its `ceil(width / size)` entries, or fewer.

        An edit's few keys could be read in parts as well, and their products be summed: one message too, as late.
        """
        if x.shape[-1] == width:  # a plan that gives every process the whole input
            return x
        longest = -(-width // self.size)  # the last processes may have less
        part = F.pad(x.detach(), (0, longest - x.shape[-1])).contiguous()
        found = [torch.empty_like(part) for _ in range(self.size)]
        dist.all_gather(found, part, group=self.group)
        return torch.cat(found, -1)[..., :width]

    def agreed(self, value: T) -> T:
        """What the first process has for `value`."""
        told = [value]
        dist.broadcast_object_list(told, group=self.group, group_src=0)
        return told[0]

    def first(self, do: Callable[[], T]) -> T:
        """What `do` gives in the first process, which alone calls it; what it raises there is raised in all."""
        told: list[Any] = [None, None]  # what it gave, and why it gave nothing
        raised = None
        if self.rank == 0:
            try:
                told[0] = do()
            except Exception as error:
                raised, told[1] = error, str(error)
        dist.broadcast_object_list(told, group=self.group, group_src=0)
        if raised is not None:
            raise raised
        if told[1] is not None:
            raise CorrigendaError(told[1])
        return told[0]

    def check_same(self, what: str, value: object) -> None:
        """Raise, in every process, where they have not the same `value`, which a user knows as `what`."""
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value, group=self.group)
        if any(other != found[0] for other in found):
            told = ", ".join(map(str, found))
            raise CorrigendaError(
                f"The processes of this model do not have the same {what} ({told}): let each of them read one folder, "
                "and make the same calls in the same order."
            )


def parts_of(model: nn.Module) -> Parts | None:
    """The processes that hold a model's parts; None where this one holds it whole. Raises where it is split otherwise.

    transformers notes the mesh of processes on the model, and makes DTensors of the weights that it splits.
    """
    mesh = getattr(model, "_device_mesh", None)
    if mesh is None or mesh.size() == 1:
        return None
    name = type(model).__name__
    names = mesh.mesh_dim_names or ()
    ways = {way for way, count in zip(names, mesh.shape) if count > 1}
    by_tokens = "sequence_parallel" in (getattr(model, "tp_plan", None) or {}).values()
    if ways != {"tp"} or by_tokens:
        how = "by tokens" if by_tokens else "by " + (" and ".join(sorted(ways)) or "an unnamed mesh")
        raise CorrigendaError(
            f'{name} cannot be edited: it is split {how}; what is known is tensor parallelism alone (tp_plan="auto").'
        )
    if not any(is_split(parameter) for parameter in model.parameters()):
        raise CorrigendaError(
            f"{name} cannot be edited: its parts are not the DTensors that transformers 5.23 makes by tp_plan; load it "
            "unquantised, with that version."
        )
    return Parts(mesh["tp"].get_group())


def is_split(tensor: Tensor) -> bool:
    """Whether a tensor is one whose parts other processes have."""
    return hasattr(tensor, "placements")


def entries(tensor: Tensor, *places: Tensor) -> Tensor:
    """`tensor[places]` of a whole or a split tensor, bit for bit; of the latter all processes must ask the same."""
    if not is_split(tensor):
        return tensor[places]
    (placement,), part = tensor.placements, tensor.to_local()
    if not placement.is_shard():
        return part[places]
    if placement.dim % tensor.dim() >= len(places):  # what is asked for is itself in parts
        return tensor.full_tensor()[places]
    along, mesh = placement.dim % tensor.dim(), tensor.device_mesh
    start = mesh.get_local_rank() * -(-tensor.shape[along] // mesh.size())
    own = places[along] - start
    inside = (own >= 0) & (own < part.shape[along])
    local = [place[inside] for place in places]
    local[along] = own[inside]
    found = part.new_zeros(len(own), *part.shape[len(places) :])
    found[inside] = part[tuple(local)]
    dist.all_reduce(found, group=mesh.get_group())  # one process has it, the others zeros
    return found


def whole_tensor(tensor: Tensor) -> Tensor:
    """A whole or a split tensor, gathered: for small ones."""
    return tensor.full_tensor() if is_split(tensor) else tensor  # type: ignore[attr-defined]


def flat_entries(tensor: Tensor, places: Tensor) -> Tensor:
    """The same of a tensor seen as one row, at `places` `[n]` int64."""
    if not is_split(tensor):
        return tensor.reshape(-1)[places]
    return entries(tensor, *torch.unravel_index(places, tensor.shape))
