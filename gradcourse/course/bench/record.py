"""A run of the benchmarks: its table, and the record of it with the machine, the versions and the command.

The record also has what the book draws against the depth, and the shares of the processor's peak.
"""

import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from gradcourse._checks import known_name
from gradcourse._logdomain import dot
from gradcourse.course.bench import contenders
from gradcourse.course.bench.cases import BATCH, CASES, NEEDED, OUTPUTS, SIZES, dense, swept
from gradcourse.course.bench.race import Row, table
from gradcourse.course.provenance import in_words, provenance, seconds

__all__ = ["Record", "depth_scan", "matrix_product_peak", "run", "sweep_shares"]


@dataclass(frozen=True)
class Record:
    """The results of a run, and what they depend on."""

    provenance: dict[str, Any]
    rows: tuple[Row, ...]
    depth_scan: list[dict[str, Any]]
    matrix_product_peak: float
    shares_of_peak: dict[str, float]

    @classmethod
    def read(cls, path: Path | str) -> "Record":
        """Returns the record in the JSON file at `path`."""
        fields = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**fields | {"rows": tuple(Row(**row) for row in fields["rows"])})

    def write(self, path: Path | str) -> None:
        """Writes the record as JSON."""
        Path(path).write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")

    def __str__(self) -> str:
        """What machine, when and how, in a few lines."""
        return in_words(self.provenance)


def run(cases: Sequence[str] = (), record: Path | None = None) -> list[Row]:
    """Runs the named cases (all by default), prints their table, and writes the record where one is asked for.

    Rows against a package that is not installed are left off, and a line says so. Raises `ValueError` for an unknown
    case.
    """
    rows: list[Row] = []
    for name in [known_name("case", name, CASES) for name in cases] or CASES:
        if name in NEEDED and not find_spec(name):
            print(f"{name}: left off, {name} is not installed (pip install -e '.[bench]')", file=sys.stderr)
            continue
        for row in CASES[name]():
            rows.append(row)
            print(repr(table([row])).splitlines()[1], file=sys.stderr, flush=True)
    print(table(rows))
    if record is not None:
        command = " ".join(["python -m gradcourse bench", *cases, "--json", record.name])
        settings = {"batch": BATCH, "outputs": OUTPUTS, "dtype": "float32", "matmul precision": "highest"}
        source = provenance(command, packages=("torch", "matfree")) | {"settings": settings}
        Record(source, tuple(rows), depth_scan(), matrix_product_peak(), sweep_shares()).write(record)
        print(f"recorded in {record}")
    return rows


def depth_scan(
    depths: Sequence[int] = (2, 8, 32, 128, 512, 2048, 8192), *, patience: float = 20, rounds: int = 5
) -> list[dict[str, Any]]:
    """Returns seconds to run and to compile each way of measuring all layers of width 64, against depth.

    A way is left off where a smaller depth has taken more than `patience` seconds. PyTorch compiles nothing.
    """
    ways: dict[str, Callable[..., Callable[[], Any]]] = {
        "one sweep, scanned": swept,
        "jax.jacrev per layer": contenders.jax_jacrev_per_layer,
    }
    if find_spec("torch"):
        ways |= {
            "torch.autograd.grad, batched": contenders.torch_batched,
            "torch.func.jacrev per layer": contenders.torch_jacrev_per_layer,
        }
    points = []
    for way, make in ways.items():
        for depth in depths:
            program = make(*dense(depth, 64))
            jax.clear_caches()
            first = seconds(program)
            again = float(np.median([seconds(program) for _ in range(rounds if first < 1 else 1)]))
            compiled = max(first - again, 0) if "torch" not in way else 0.0
            points.append({"way": way, "depth": depth, "run": again, "compile": compiled})
            if first > patience:
                break
    return points


def matrix_product_peak(size: int = 2048, rounds: int = 9) -> float:
    """Returns the floating-point operations per second of the fastest round of a large float32 matrix product."""
    a = jnp.ones((size, size))
    product = partial(jax.jit(dot), a, a)
    seconds(product)
    return 2 * size**3 / min(seconds(product) for _ in range(rounds))


def sweep_shares(sizes: Sequence[tuple[int, int]] = SIZES, rounds: int = 5) -> dict[str, float]:
    """Returns, per size, the share of that peak at which the sweep's matrix products are worked off."""
    peak, shares = matrix_product_peak(), {}
    for depth, width in sizes:
        program = swept(*dense(depth, width))
        seconds(program)
        operations = 2 * depth * width**2 * BATCH * (1 + OUTPUTS)
        shares[f"dense, {depth} layers of {width}"] = operations / min(seconds(program) for _ in range(rounds)) / peak
    return shares
