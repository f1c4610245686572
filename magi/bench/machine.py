"""What the figures were taken on: processor, GPU and its clocks, versions, threads, and how busy the host was."""

import os
import platform
import shutil
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

_QUERY = ("name", "driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.draw", "power.limit")
_ASK_SECONDS = 20


def machine_facts(device: torch.device) -> dict[str, object]:
    """Facts of this process and machine, as JSON; the clocks and the load are those of this moment."""
    facts: dict[str, object] = {
        "when": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "triton": _version("triton"),
        "processor": _processor(),
        "bf16 products": bool(torch.cpu._is_avx512_bf16_supported()),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load": [round(value, 2) for value in os.getloadavg()],
    }
    if device.type == "cuda":
        facts |= {"cuda": torch.version.cuda, "gpu": torch.cuda.get_device_name(device), **gpu_clocks()}
    return facts


def gpu_clocks() -> dict[str, str]:
    """What the driver's tool says of the first GPU; empty where there is no such tool."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return {}
    command = [tool, f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader", "--id=0"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_ASK_SECONDS, check=False)
    values = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(_QUERY, values, strict=False)) if done.returncode == 0 else {}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    path = Path("/proc/cpuinfo")
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor()
