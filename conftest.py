"""What every test runs under: the tests', the package's docstring examples' and the notebooks' kernels.

The environment variables reach the notebooks' kernels too, so only what a reader would also have is set that
way; the stricter settings, and the compiler's haste, hold in this process alone.
"""

import os
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from pkgutil import walk_packages

import hypothesis
import jax
import jaxtyping
import matplotlib as mpl
import pytest

IPYTHON_SETTINGS = Path(__file__).parent / "_build" / "ipython"  # empty: nobody's own start-up files
IPYTHON_SETTINGS.mkdir(parents=True, exist_ok=True)
os.environ.update(IPYTHONDIR=str(IPYTHON_SETTINGS), JAX_PLATFORMS="cpu")  # the stored digits are a CPU's

jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_numpy_dtype_promotion", "strict")
mpl.use("agg")

# Tests spend their time compiling programs that run for milliseconds, so here XLA optimises little and halves it.
# The notebooks' kernels check what readers run, so they get the flags as they were: XLA reads them but once.
flags = os.environ.get("XLA_FLAGS", "")
os.environ["XLA_FLAGS"] = f"{flags} --xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
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


@pytest.fixture(autouse=True, scope="module")
def programs_of_one_module() -> Iterator[None]:
    """Forget all compiled programs after each module: a process may map 65,530 regions of memory, and each takes three.

    Without it, a worker that is given many modules is killed by the kernel's limit.
    """
    yield
    jax.clear_caches()


@pytest.fixture
def no_runtime_typecheck() -> Iterator[None]:
    """Switch jaxtyping's checks off, so that a test sees the package's own errors for bad input."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
