"""What every test runs under: the tests', the package's docstring examples' and the notebooks' kernels.

The environment variables reach the notebooks' kernels too, so only what a reader would also have is set that
way; the stricter settings are JAX's own configuration and hold in this process alone.
"""

import os
from collections.abc import Iterator
from pathlib import Path

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
    """Import the whole package once, so that docstring examples and tests share one copy of every module."""
    import gradcourse  # noqa: F401


@pytest.fixture
def no_runtime_typecheck() -> Iterator[None]:
    """Switch jaxtyping's checks off, so that a test sees the package's own errors for bad input."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
