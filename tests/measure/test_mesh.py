"""Sweeps split over many devices, and over two processes, give the numbers of one device."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import many_devices
import numpy as np
import pytest

from gradcourse.measure.division import checked_mesh, parts
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import mlp
from gradcourse.training.sweeps import over_seeds

PROGRAM = Path(many_devices.__file__)
ENVIRONMENT = os.environ | {"XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"}


def started(*arguments):
    """A process of that program, with this one's packages."""
    environment = ENVIRONMENT | {"PYTHONPATH": str(PROGRAM.parents[1])}
    return subprocess.Popen(
        [sys.executable, PROGRAM, *map(str, arguments)], env=environment, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def alone():
    return many_devices.measurements(None, None)


def agrees(path, alone):
    found = np.load(path)
    assert set(found) == set(alone)
    for name in found:
        np.testing.assert_allclose(found[name], alone[name], rtol=0, atol=1e-6, err_msg=name)


def test_eight_devices_give_the_numbers_of_one(tmp_path, alone):
    process = started(tmp_path / "eight.npz")
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    agrees(tmp_path / "eight.npz", alone)


def test_two_processes_give_the_numbers_of_one_device(tmp_path, alone):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [started(tmp_path / f"{index}.npz", index, port) for index in range(2)]
    errors = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], errors
    for index in range(2):
        agrees(tmp_path / f"{index}.npz", alone)


def test_the_work_is_truly_split():
    """Of two devices, each holds half of the batch where a measurement can see it."""
    mesh = many_devices.mesh_of(example=2)
    network = mlp(3, [4], 2)
    params, x = network.init(key=jax.random.key(0)), jnp.ones((4, 3))
    lowered = jax.jit(lambda x: backward_jacobian_norms(network, params, x, mesh=mesh).fraction).lower(x)
    assert "f32[2,2,4]" in lowered.compile().as_text()  # (direction, batch / 2, width)


@pytest.mark.parametrize(
    ("axis", "sizes", "words"),
    [
        ("examples", {}, r"mesh has the axes \('examples',\); accepted is at least one of"),
        ("example", {"example": 3}, "mesh has 2 devices along 'example' and there are 3; accepted is a multiple"),
    ],
)
def test_bad_meshes_are_refused(axis, sizes, words):
    with pytest.raises(ValueError, match=words):
        checked_mesh(many_devices.mesh_of(**{axis: 2}), **sizes)


def test_seeds_that_cannot_be_shared_out_are_refused():
    with pytest.raises(ValueError, match="2 devices along 'seed' and there are 3"):
        over_seeds(
            backward_jacobian_norms,
            mlp(3, [4], 2),
            jnp.ones((1, 3)),
            seeds=3,
            key=jax.random.key(0),
            mesh=many_devices.mesh_of(seed=2),
        )


def test_no_mesh_is_one_part():
    assert parts(None, "seed") == 1
    assert parts(many_devices.mesh_of(seed=2), "seed") == 2
    assert parts(many_devices.mesh_of(seed=2), "probe") == 1
