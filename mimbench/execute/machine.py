"""This machine: its cores and GPUs, and the facts that a run's numbers may depend on."""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
import platform
import re
from pathlib import Path
from typing import Any

from mimbench.store.folder import Options

RECORDED = (
    "mimbench", "torch", "torchvision", "timm", "numpy", "pillow",
    "onedl-mmengine", "onedl-mmcv", "onedl-mmsegmentation", "onedl-mmdetection",
)  # fmt: skip
PARENT = "MIMBENCH_PARENT"  # in a worker's environment: the process that started it
MAX_LOADER_WORKERS = 8  # per GPU


def num_cores() -> int:
    """Cores this process may use, a container's limit included."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
    except (OSError, ValueError):
        return cores
    return cores if quota == "max" else max(min(cores, round(int(quota) / int(period))), 1)


def gpu_ids() -> list[str]:
    """The NVIDIA GPUs this process may use, without loading torch."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1")]
    devices = (re.fullmatch(r"nvidia(\d+)", path.name) for path in Path("/dev").glob("nvidia*"))
    return sorted((match[1] for match in devices if match), key=int)


def is_stopped_orphan(pid: int) -> bool:
    """Whether a process of this machine is a stopped worker of ours whose parent process is gone."""
    place = Path("/proc") / str(pid)
    try:
        state = place.joinpath("stat").read_text().rpartition(")")[2].split()[0]
        variables = place.joinpath("environ").read_bytes().split(b"\0")
    except (OSError, IndexError):
        return False
    parents = [entry.partition(b"=")[2] for entry in variables if entry.startswith(f"{PARENT}=".encode())]
    return state in "Tt" and bool(parents) and not Path("/proc", parents[0].decode()).exists()


def default_jobs() -> int:
    """How many runs go on at the same time: one per GPU, or one per core without a GPU."""
    return len(gpu_ids()) or num_cores()


def options() -> Options:
    """Options with loader processes for a GPU; on CPU none, as they would take cores from the model."""
    gpus = len(gpu_ids())
    return Options(num_workers=min(num_cores() // gpus, MAX_LOADER_WORKERS) if gpus else 0)


def environment() -> dict[str, Any]:
    """What the numbers may depend on besides the source: versions, threads, device."""
    import torch

    versions = {}
    for name in RECORDED:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    cuda = torch.cuda.is_available()
    return {
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "cuda": torch.version.cuda if cuda else None,
        "commit": git_commit(),
    }


def git_commit() -> str | None:
    """The checkout's commit, read from .git; None in an installed wheel."""
    git = Path(__file__).resolve().parents[2] / ".git"
    try:
        if git.is_file():  # a linked work tree
            git = Path(git.read_text().partition("gitdir:")[2].strip())
        head = (git / "HEAD").read_text().strip()
        if not head.startswith("ref: "):
            return head
        common = git / (git / "commondir").read_text().strip() if (git / "commondir").is_file() else git
        loose = common / head[5:]
        if loose.is_file():
            return loose.read_text().strip()
        packed = (common / "packed-refs").read_text().splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {head[5:]}")), None)
    except OSError:
        return None
