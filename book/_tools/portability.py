"""Compare the notebooks twice more, as on other people's machines: older instructions, and a single core.

The digits that the chapters print must survive both; if one does not, print fewer of them.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
COMPARE = [sys.executable, "-m", "pytest", "-q", "book"]


def compare(what: str, flags: str, *options: str) -> bool:
    """Whether every stored output is reproduced with these XLA flags."""
    print(f"== the notebooks {what}", flush=True)
    done = subprocess.run([*COMPARE, *options], cwd=ROOT, env={**os.environ, "XLA_FLAGS": flags}, check=False)
    return done.returncode == 0


def main() -> int:
    """0 if both comparisons hold."""
    good = True
    if platform.machine() in ("x86_64", "AMD64"):
        good &= compare("on AVX, without AVX2 and FMA", "--xla_cpu_max_isa=AVX", "-n", "2", "--dist", "loadfile")
    else:
        print(f"== skipped: {platform.machine()} has no AVX to go back to")
    if hasattr(os, "sched_setaffinity"):  # Linux; the kernels inherit it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        good &= compare("on one core", "")
    else:
        print("== this system cannot pin a process to one core; XLA gets one thread instead")
        good &= compare("on one thread", "--xla_cpu_multi_thread_eigen=false")
    print("portable" if good else "NOT portable: print fewer digits where the comparisons above differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
