"""Processes of one machine find each other by a file that only its user can read: no port is open to others."""

import atexit
import os
import shutil
import socket
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import ParallelStrategy

_FOLDER = "NOISING_RENDEZVOUS"
"""The variable of the environment by which the processes that Lightning starts know the folder of the file."""


def meet_in_private(trainer: Trainer) -> None:
    """Let the processes that Lightning starts on this machine meet by a file in a private folder, over loopback.

    torch's own store listens on all interfaces, without a password. Where a launcher starts the processes (torchrun,
    Slurm), or on several nodes, they meet as it says.
    """
    strategy = trainer.strategy
    if not isinstance(strategy, ParallelStrategy) or trainer.num_nodes > 1 or trainer.world_size < 2:
        return
    if type(strategy.cluster_environment) is not LightningEnvironment:
        return
    if os.environ.get("LOCAL_RANK", "0") == "0":  # the process that starts the others
        folder = os.environ[_FOLDER] = tempfile.mkdtemp(prefix="noising-")
        atexit.register(_remove, folder, os.getpid())
        loopback = next((name for _, name in socket.if_nameindex() if name in ("lo", "lo0")), None)
        if loopback is not None:
            for variable in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
                os.environ.setdefault(variable, loopback)
    if _FOLDER in os.environ:
        strategy.setup_environment = partial(_set_up, trainer)  # type: ignore[method-assign]


def _set_up(trainer: Trainer) -> None:
    """Join the other processes, and then do what the strategy does, which finds that it has joined them."""
    strategy: Any = trainer.strategy
    if not torch.distributed.is_initialized():
        strategy.accelerator.setup_device(strategy.root_device)
        strategy.set_world_ranks()
        device = strategy.root_device
        # spawned processes of a fit and of a test are two groups, and a file is for one
        file = Path(os.environ[_FOLDER], str(trainer.state.fn))
        torch.distributed.init_process_group(
            strategy.process_group_backend or ("nccl" if device.type == "cuda" else "gloo"),
            init_method=file.as_uri(),
            rank=strategy.global_rank,
            world_size=strategy.world_size,
            timeout=strategy._timeout,
            device_id=None if device.type == "cpu" else device,
        )
        atexit.register(_leave)
    type(strategy).setup_environment(strategy)


def _leave() -> None:
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _remove(folder: str, process: int) -> None:
    if os.getpid() == process:
        shutil.rmtree(folder, ignore_errors=True)
