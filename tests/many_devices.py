"""A program that measures on all devices there are: `python many_devices.py OUT.npz [PROCESS PORT]`.

Run by test_devices.py: once with eight devices, and as two processes of four devices each.
"""

import sys

import jax
import numpy as np

from gradcourse.measure.jacobians import backward_jacobian_norms, forward_jacobian_norms, layer_jacobian_norms
from gradcourse.nn.convolutions import Conv, MaxPool
from gradcourse.nn.layers import Dense, Flatten
from gradcourse.nn.network import sequential
from gradcourse.training.sweeps import over_seeds

NETWORK = sequential((4, 4, 2), [*[Conv(2, "tanh")] * 3, MaxPool(2), Flatten(), Dense(8, "sigmoid"), Dense(8)])


def measurements(mesh, seed_mesh):
    """Returns norms by name, split over the examples, directions and seeds of the meshes."""
    params = NETWORK.init(key=jax.random.key(0))
    x = jax.random.normal(jax.random.key(1), (8, 4, 4, 2))
    found = {}
    for measure in (backward_jacobian_norms, forward_jacobian_norms, layer_jacobian_norms):
        found[measure.__name__] = measure(NETWORK, params, x, average=False, mesh=mesh).log10_norm
    sampled = {"probes": 2, "sketch": 2, "key": jax.random.key(2)}
    profile = backward_jacobian_norms(NETWORK, params, x, mesh=mesh, **sampled)
    found |= {"sampled": profile.log10_norm, "its error": np.asarray(profile.standard_error)}
    profile = over_seeds(backward_jacobian_norms, NETWORK, x, seeds=16, key=jax.random.key(3), mesh=seed_mesh)
    return found | {"over seeds": profile.log10_norm}


def mesh_of(**sizes):
    """Returns the mesh of all devices with axes of these sizes."""
    return jax.make_mesh(tuple(sizes.values()), tuple(sizes))


if __name__ == "__main__":
    jax.config.update("jax_platforms", "cpu")
    jax.config.update("jax_num_cpu_devices", 8 if len(sys.argv) == 2 else 4)
    if len(sys.argv) > 2:
        process, port = int(sys.argv[2]), sys.argv[3]
        jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=process)
    assert jax.device_count() == 8, jax.devices()
    np.savez(sys.argv[1], **measurements(mesh_of(example=4, probe=2), mesh_of(seed=8)))
