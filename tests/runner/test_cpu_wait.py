"""Waiting for another process on a CPU: told of a message, and looking now and then."""

import time

import pytest
from vllm.distributed.device_communicators.shm_broadcast import SpinCondition

from diffusiongemma_vllm.runner import cpu_wait


class Poller:
    """Times out at once, and keeps for how long it was asked to wait."""

    def __init__(self):
        self.asked = []

    def poll(self, timeout):
        self.asked.append(timeout)
        return []


@pytest.mark.parametrize(("asked", "most"), [(None, cpu_wait.LONGEST), (5, 5), (60_000, 20)])
def test_no_second_of_looking_without_a_pause(monkeypatch, asked, most):
    monkeypatch.setattr(SpinCondition, "wait", SpinCondition.wait)  # put back afterwards
    cpu_wait.install()
    condition = object.__new__(SpinCondition)
    condition.is_reader, condition.busy_loop_s, condition.last_read = True, 1, time.monotonic()
    condition.read_cancel_socket = condition.local_notify_socket = None
    condition.poller = Poller()
    condition.wait(asked)
    assert condition.poller.asked == [most]
