"""Compare the notebooks twice more, as on other people's machines: older instructions, and a single core.

The digits that the chapters print must survive both; if one does not, print fewer of them. An argument like `2/3`
takes every third notebook, from the second on.
"""

import os
import platform
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
NOTEBOOKS = sorted((ROOT / "book").glob("*.ipynb"))


def part(which: str) -> list[Path]:
    """The notebooks of one part: `2/3` is every third, from the second on; all of them are `1/1`.

    >>> [path.name[:2] for path in part("1/3")]
    ['01', '04', '07', '10', 'ap']
    """
    first, _, step = which.partition("/")
    if not (first.isdigit() and step.isdigit() and 1 <= int(first) <= int(step)):
        raise SystemExit(f"{which!r} is no part of the notebooks; say for example 1/3, 2/3 or 3/3")
    return NOTEBOOKS[int(first) - 1 :: int(step)]


def compare(what: str, notebooks: list[Path], flags: str, *options: str) -> bool:
    """Whether every stored output is reproduced with these XLA flags, by programs compiled here and now."""
    print(f"== {what}: {', '.join(path.stem for path in notebooks)}", flush=True)
    # A kept program may have been compiled for all cores.
    environment = {**os.environ, "XLA_FLAGS": flags, "JAX_ENABLE_COMPILATION_CACHE": "false"}
    command = [sys.executable, "-m", "pytest", "-q", *options, *map(str, notebooks)]
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def main(which: str = "1/1") -> int:
    """0 if both comparisons hold."""
    notebooks = part(which)
    good = True
    if platform.machine() in ("x86_64", "AMD64"):
        workers = ("-n", "2", "--dist", "loadfile")
        good &= compare("on AVX, without AVX2 and FMA", notebooks, "--xla_cpu_max_isa=AVX", *workers)
    else:
        print(f"== skipped: {platform.machine()} has no AVX to go back to")
    if hasattr(os, "sched_setaffinity"):  # Linux; the kernels inherit it
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
        good &= compare("on one core", notebooks, "")
    else:
        print("== this system cannot pin a process to one core; XLA gets one thread instead")
        good &= compare("on one thread", notebooks, "--xla_cpu_multi_thread_eigen=false")
    print("portable" if good else "NOT portable: print fewer digits where the comparisons above differ")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
