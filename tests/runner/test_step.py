"""A plain request's step asks the device for nothing: no wait between launch and launch."""

from contextlib import contextmanager

import pytest
import torch
from around import LIMIT, REQUESTS, Host, Side, steps
from torch.utils._python_dispatch import TorchDispatchMode

# Each needs a number, or a size, that only the device knows.
WAITS = {
    "aten::_local_scalar_dense", "aten::item", "aten::is_nonzero", "aten::nonzero",
    "aten::masked_select", "aten::unique_dim", "aten::_unique2", "aten::equal",
    "aten::repeat_interleave",
}
METHODS = ("tolist", "item", "numpy", "cpu", "__bool__", "__int__", "__float__", "__index__")


class Guard(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function._schema.name
        places = args[1] if name.startswith("aten::index") and len(args) > 1 else ()
        masks = isinstance(places, list | tuple) and any(
            isinstance(x, torch.Tensor) and x.dtype in (torch.bool, torch.uint8) for x in places
        )
        assert name not in WAITS and not masks, f"{name} waits for the device"
        return function(*args, **kwargs or {})


@contextmanager
def nothing_waits():
    """On a CPU some methods read memory without an operator: they fail by name."""
    with pytest.MonkeyPatch.context() as patch, Guard():
        for name in METHODS:
            def refuse(*args, name=name, **kwargs):
                raise AssertionError(f"Tensor.{name} waits for the device")

            patch.setattr(torch.Tensor, name, refuse)
        yield


@pytest.mark.parametrize("wait", [
    lambda x: x.tolist(), lambda x: x[0].item(), lambda x: int(x[0]), lambda x: bool(x[0]),
    lambda x: x[x > 0], lambda x: x.nonzero(), lambda x: [0, 1][x[1]], lambda x: x.cpu(),
    lambda x: x.repeat_interleave(x),
])
def test_the_guard_sees_every_kind_of_wait(wait):
    x = torch.tensor([0, 1, 2])
    with pytest.raises(AssertionError, match="waits for the device"), nothing_waits():
        wait(x)


def test_a_plain_step_waits_for_nothing():
    """Inputs and sampler, from the prompt to the end of the context."""
    side, host = Side("cpu", False), Host()
    for requests, batch, rows, hidden in steps(host, "cpu"):
        total = sum(rows for _, _, rows, _ in requests)
        ids = torch.zeros(total, dtype=torch.int32)
        with nothing_waits():
            side.inputs_of(rows, ids, total + 2)
            out = side.sampler(hidden, batch)
        host.update(requests, out.num_sampled.tolist(), out.num_rejected.tolist())
    assert host.text == [LIMIT] * REQUESTS
