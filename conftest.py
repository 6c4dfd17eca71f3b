"""What every test runs under: the tests', the package's docstring examples' and the notebooks' kernels.

The environment variables reach the notebooks' kernels too, so only what a reader would also have is set that
way; the stricter settings, and the compiler's haste, hold in this process alone.
"""

import os
from collections import Counter
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import hypothesis
import jax
import jaxtyping
import matplotlib as mpl
import pytest

BUILD = Path(__file__).parent / "_build"
IPYTHON_SETTINGS = BUILD / "ipython"  # empty: nobody's own start-up files
IPYTHON_SETTINGS.mkdir(parents=True, exist_ok=True)
os.environ.update(IPYTHONDIR=str(IPYTHON_SETTINGS), JAX_PLATFORMS="cpu")  # the stored digits are a CPU's

# Workers, kernels and the next run share what was compiled. A program is found again by all that it was made of (its
# own text, the flags, the versions) except the number of cores, which is in the folder's name. Programs compiled in
# haste lie apart from those that readers would run. What compiles sooner than it is read back is not kept.
CACHE = BUILD / "jax_cache" / f"{os.cpu_count()}-cores"
KEPT_SECONDS = 0.1
os.environ.update(
    JAX_COMPILATION_CACHE_DIR=str(CACHE / "as_read"),
    JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=str(KEPT_SECONDS),
    JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES="-1",
    # Who reads a program while another process writes it finds half of it, notices, and compiles it.
    PYTHONWARNINGS="ignore:Error reading persistent compilation cache entry",
)
jax.config.update("jax_compilation_cache_dir", str(CACHE / "in_haste"))
jax.config.update("jax_persistent_cache_min_compile_time_secs", KEPT_SECONDS)
jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
mpl.use("agg")

# Tests spend their time compiling programs that run for milliseconds, so here XLA optimises little and halves it;
# and it compiles a program in one piece, since both cores have a worker of their own: that takes another third off.
# The notebooks' kernels check what readers run, so they get the flags as they were: XLA reads them but once.
flags = os.environ.get("XLA_FLAGS", "")
haste = "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
os.environ["XLA_FLAGS"] = f"{flags} {haste} --xla_cpu_parallel_codegen_split_count=1"
jax.devices()
os.environ["XLA_FLAGS"] = flags

# The same examples at every run: a red build must mean a change, and a first call compiles for seconds.
hypothesis.settings.register_profile(
    "course",
    deadline=None,
    derandomize=True,
    max_examples=20,
    database=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("course")


def pytest_sessionstart() -> None:
    """Import the whole package once, so that docstring examples and tests share one copy of every module.

    What it stands on comes first: all that is imported under jaxtyping's hook is compiled from source.
    """
    for name in ("matplotlib.figure", "optax", "scipy.stats", "sklearn.datasets", "gradcourse"):
        import_module(name)
    for module in walk_packages(import_module("gradcourse").__path__, "gradcourse."):
        import_module(module.name)


MAPS = Path("/proc/self/maps")  # Linux's list of the regions of memory that a process has mapped
FULL = 5_000


@pytest.fixture(autouse=True, scope="module")
def programs_of_few_modules() -> Iterator[None]:
    """Forget all compiled programs after a module where they have become many.

    A process may map 65,530 regions of memory and each program takes three, and some megabytes: without this, a worker
    that is given many modules is killed by the kernel's limit. Until then modules share their programs.
    """
    yield
    if not MAPS.exists() or MAPS.read_bytes().count(b"\n") > FULL:
        jax.clear_caches()


@pytest.fixture
def no_runtime_typecheck() -> Iterator[None]:
    """Switch jaxtyping's checks off, so that a test sees the package's own errors for bad input."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


def part(test: str) -> str:
    """Which part of the checks a test belongs to, by its id: the words that `make test ONLY=...` knows."""
    if ".ipynb" in test:
        return "notebooks"
    if test.startswith("gradcourse/"):
        return "docs"
    if test.startswith("tests/test_style.py"):
        return "types" if test.endswith("[types]") else "style"
    return "pages" if test.startswith("tests/test_site.py") else "units"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what each part took: seconds of all workers together, those of fixtures included."""
    seconds: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds[part(report.nodeid)] += report.duration
    if seconds:
        terminalreporter.write_line("  ".join(f"{name} {spent:.0f} s" for name, spent in seconds.most_common()))
