"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import lightning_sphere


def machine(device: str) -> dict[str, Any]:
    """The machine and the versions, in words and numbers."""
    found: dict[str, Any] = {
        "cpu": cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "system": platform.system(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": version("pytorch_lightning"),
        "lightning_sphere": lightning_sphere.__version__,
        "device": device,
    }
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
        found["cuda"] = torch.version.cuda
    return found


def cpu_model() -> str:
    """The processor's name."""
    information = Path("/proc/cpuinfo")
    if information.exists():
        for line in information.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def in_words(found: dict[str, Any]) -> str:
    """One line for people."""
    where = f"{found['gpu']}, " if "gpu" in found else ""
    return (
        f"{where}{found['cpu']}, {found['cores']} cores, {found['threads']} threads, "
        f"torch {found['torch']}, Lightning {found['lightning']}, Python {found['python']}"
    )
