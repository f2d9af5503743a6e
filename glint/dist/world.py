"""This process among the ranks: how it joins them, and how it leaves them."""

from __future__ import annotations

import fcntl
import os
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta

import torch
import torch.distributed as dist

from glint.errors import LostError, ResourceError, UsageError

CPU = torch.device("cpu")
TIMEOUT = 120.0  # seconds a collective may wait for the other ranks
SIOCGIFADDR = 0x8915  # Linux: the address of a network interface
PATIENCE = 600.0  # the same, for what is done beside training: a slow disk is no lost rank


@dataclass
class Waited:
    """Seconds spent in collectives on the CPU; those of a GPU are only started by it."""

    seconds: float = 0.0


@dataclass(frozen=True)
class World:
    """This rank among `size` ranks.

    rank: 0 .. size - 1; device: where its tensors live; group: a process group, None for the
    default one. At size 1 there is no process group at all and every collective is the identity.
    waited: what the collectives of this world add up, for whoever measures.
    """

    rank: int = 0
    size: int = 1
    device: torch.device = CPU
    group: dist.ProcessGroup | None = None
    waited: Waited = field(default_factory=Waited, compare=False, repr=False)

    def __deepcopy__(self, memo: dict[int, object]) -> World:
        """Return itself: a copy of a head is among the same ranks."""
        return self


def join(device: str | torch.device = "cpu", *, timeout: float = TIMEOUT) -> World:
    """Join the ranks that the environment names: RANK, WORLD_SIZE, LOCAL_RANK.

    The meeting point is GLINT_RENDEZVOUS (a file:// or tcp:// address, set by
    `glint.dist.launch.run_ranks`) or else torchrun's MASTER_ADDR and MASTER_PORT. Ranks talk gloo
    on CPU and NCCL on GPU. `device` "auto" takes a GPU where there is one. timeout: seconds for the
    meeting and for every collective. Raises UsageError (GL0002) for a bad environment,
    ResourceError (GL0002) for a device that is not there, LostError (GL0601) when the ranks do not
    meet in time.
    """
    rank, size = _number("RANK", 0), _number("WORLD_SIZE", 1)
    if not 0 <= rank < size:
        raise UsageError(
            "GL0002",
            f"RANK is {rank}, expected 0 to WORLD_SIZE - 1 = {size - 1}",
            where="environment",
        )
    place = _place(device, _number("LOCAL_RANK", rank))
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if size == 1:
        return World(device=place)
    method = os.environ.get("GLINT_RENDEZVOUS", "env://")
    if method == "env://" and "MASTER_ADDR" not in os.environ:
        raise UsageError(
            "GL0002",
            f"WORLD_SIZE is {size}, but nothing says where ranks meet",
            where="environment",
            hint="start the ranks with --nproc or torchrun, or set GLINT_RENDEZVOUS",
        )
    if "MASTER_ADDR" in os.environ and (name := _interface_to(os.environ["MASTER_ADDR"])):
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
    try:
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo",
            init_method=method,
            rank=rank,
            world_size=size,
            timeout=timedelta(seconds=timeout),
        )
    except (dist.DistError, RuntimeError, ValueError) as error:
        raise LostError(
            "GL0601",
            f"{size} ranks did not meet within {timeout:g} s: {error}",
            where=f"rank {rank}",
            hint="is every rank started, and can they reach each other?",
        ) from error
    return World(rank, size, place)


def present(given: World | dist.ProcessGroup | None = None) -> World:
    """Return the world that is meant: as given, of a process group, or of the one that is live.

    Without a process group it is one rank on the CPU. With "nccl" rows live on the current GPU.
    Raises UsageError (GL0002) for a group that this process is not in.
    """
    if isinstance(given, World):
        return given
    if given is None and not (dist.is_available() and dist.is_initialized()):
        return World()
    rank, size = dist.get_rank(given), dist.get_world_size(given)
    if rank < 0:
        raise UsageError("GL0002", "this process is not in it", where="process group")
    on_gpu = "nccl" in str(dist.get_backend(given)) and torch.cuda.is_available()
    place = torch.device("cuda", torch.cuda.current_device()) if on_gpu else CPU
    return World(rank, size, place, given) if size > 1 else World(device=place)


def cpu_group(world: World) -> World:
    """Open a second process group of all ranks, for a thread that works while training goes on.

    It is gloo's, on the CPU, and waits for long: a rank that dies closes it. Every rank calls this,
    in the same order as other collectives. At size 1 there is nothing to open.
    """
    if world.size == 1:
        return World()
    group = dist.new_group(backend="gloo", timeout=timedelta(seconds=PATIENCE))
    return World(world.rank, world.size, CPU, group)


def leave(world: World) -> None:
    """Leave the ranks that `join` joined."""
    if world.size > 1 and dist.is_initialized():
        dist.destroy_process_group()


def _interface_to(host: str) -> str:
    """Return the network interface that reaches a host; "" where the machine's own name will do.

    Gloo listens where the machine's name resolves to, which on many is the loopback.
    """
    try:
        if not socket.gethostbyname(socket.gethostname()).startswith("127."):
            return ""
    except OSError:
        pass  # a name that resolves to nothing is no better
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            own = socket.inet_aton(probe.getsockname()[0])
            for _, name in socket.if_nameindex():
                with suppress(OSError):
                    asked = struct.pack("256s", name.encode()[:15])
                    if fcntl.ioctl(probe, SIOCGIFADDR, asked)[20:24] == own:
                        return name
    except OSError:
        pass
    return ""


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    if not text:
        return default
    try:
        return int(text)
    except ValueError:
        raise UsageError(
            "GL0002", f"{name} is {text!r}, expected a whole number", where="environment"
        ) from None


def _place(device: str | torch.device, local_rank: int) -> torch.device:
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        place = torch.device(device)
    except RuntimeError:
        raise UsageError("GL0002", f"device is {device!r}, expected cpu, cuda or auto") from None
    if place.type == "cuda":
        count = torch.cuda.device_count()
        alone = count == 1 and "SLURM_PROCID" in os.environ  # Slurm shows each task its own GPU
        index = (0 if alone else local_rank) if place.index is None else place.index
        if index >= count:
            raise ResourceError(
                "GL0002",
                f"device cuda:{index} was asked for, {count} found",
                hint="start fewer ranks on this machine, or use device cpu",
            )
        place = torch.device("cuda", index)
    return place
