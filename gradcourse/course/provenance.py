"""What a recorded number depends on: the device, the versions, the day and the command; and how a time is taken.

>>> sorted(provenance("python -m gradcourse bench"))
['command', 'cores', 'date', 'device', 'driver', 'platform', 'python', 'system', 'versions']
"""

import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import fill
from typing import Any

import jax

__all__ = ["check_platform", "in_words", "provenance", "seconds"]


def provenance(command: str, *, packages: Sequence[str] = ()) -> dict[str, Any]:
    """Returns what numbers computed here and now depend on, `packages` being those that matter besides ours."""
    device = jax.devices()[0]
    versions = {}
    for package in ("gradcourse", "jax", "jaxlib", "numpy", *packages):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    return {
        "command": command,
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
        "platform": device.platform,
        "device": _processor() if device.platform == "cpu" else device.device_kind,
        "driver": str(getattr(device.client, "platform_version", "")).strip(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": versions,
    }


def check_platform(platform: str) -> None:
    """Raises `ValueError` where this is not the `platform` asked for."""
    if jax.default_backend() != platform:
        raise ValueError(f"platform={platform!r} is asked for and this is {jax.default_backend()!r}; record it there.")


def in_words(provenance: Mapping[str, Any]) -> str:
    """Returns on what machine, when and how, in a few lines."""
    versions = fill(", ".join(f"{package} {found}" for package, found in provenance["versions"].items()), 76)
    where = "{device}, {cores} cores, {system}, Python {python}".format(**provenance)
    return f"{where}\n{versions}\n{provenance['date']}: {provenance['command']}"


def seconds(program: Callable[[], Any]) -> float:
    """Returns how long `program` takes until its results are there; JAX returns before.

    >>> seconds(lambda: jax.numpy.ones(3) + 1) > 0
    True
    """
    start = time.perf_counter()
    jax.block_until_ready(program())
    return time.perf_counter() - start


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
