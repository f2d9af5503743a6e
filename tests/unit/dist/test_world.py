"""Where a rank lives and how it reaches the others."""

from __future__ import annotations

import socket

import pytest
import torch

from glint.dist import world
from glint.errors import ResourceError


def test_a_task_that_sees_one_gpu_takes_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("SLURM_PROCID", "3")
    assert world._place("cuda", 3) == torch.device("cuda", 0)
    monkeypatch.delenv("SLURM_PROCID")
    with pytest.raises(ResourceError, match="cuda:3 was asked for, 1 found"):
        world._place("cuda", 3)


def test_where_a_machine_s_name_is_its_loopback_the_way_to_the_host_is_taken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "127.0.1.1")
    name = world._interface_to("127.0.0.1")
    assert name in [name for _, name in socket.if_nameindex()] and name.startswith("lo")
    monkeypatch.setattr(socket, "gethostbyname", lambda _: "10.1.2.3")
    assert world._interface_to("127.0.0.1") == ""
