"""The benchmarks compare like with like, and their record says what it should; no test here looks at a time."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.cli.main import main
from gradcourse.course.bench import cases, contenders, race, record
from gradcourse.measure.jacobians import backward_jacobian_norms
from gradcourse.nn.network import cnn, mlp

NETWORK = mlp(6, [6] * 4, 3, activation="tanh", init="glorot_normal")
PARAMS, X = NETWORK.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (4, 6))


@pytest.mark.parametrize(
    ("contender", "package"),
    [
        ("plain_sweep", None),
        ("jax_jacrev_per_layer", None),
        ("torch_batched", "torch"),
        ("torch_jacrev_per_layer", "torch"),
    ],
)
def test_contenders_measure_the_same(contender, package):
    if package:
        pytest.importorskip(package, reason="only the benchmarks need it: pip install -e '.[bench]'")
    squares = np.asarray(getattr(contenders, contender)(NETWORK, PARAMS, X)())
    expected = backward_jacobian_norms(NETWORK, PARAMS, X, average=False).log10_norm
    np.testing.assert_allclose(np.log10(squares).T / 2, expected, atol=1e-5)


def test_bare_products_are_the_sweeps():
    """A network without slopes and biases is nothing but them."""
    network = mlp(5, [5] * 3, 2, activation="identity")
    params, x = network.init(key=jax.random.key(0)), jnp.ones((3, 5))
    h, v = contenders.bare_products(network, params, x)()
    np.testing.assert_allclose(h, network.apply(params, x), rtol=1e-5)
    jacobian = jax.jacrev(lambda x: network.apply(params, x[None])[0])(x[0])
    np.testing.assert_allclose(v, jnp.broadcast_to(jacobian.sum(axis=0), v.shape), rtol=1e-4)


@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_convolutions_as_products_are_the_same_forward_pass(padding):
    network = cnn((6, 6, 2), [3, 4], 2, activation="tanh", padding=padding)
    params, x = network.init(key=jax.random.key(0)), jax.random.normal(jax.random.key(1), (3, 6, 6, 2))
    y = contenders.convolutions_as_products(network, params, x)()
    np.testing.assert_allclose(y, network.apply(params, x), rtol=1e-4, atol=1e-6)


def test_matfree_estimates_the_exact_norm():
    pytest.importorskip("matfree", reason="only the benchmarks need it: pip install -e '.[bench]'")
    mean, error = contenders.matfree_frobenius_norm(NETWORK, PARAMS, X[0], samples=4000)(jax.random.key(2))
    exact = 100 ** backward_jacobian_norms(NETWORK, PARAMS, X[:1]).log10_norm[0]
    assert abs(mean - exact) < 4 * error


def test_a_ratio_is_that_of_the_times(monkeypatch):
    times = iter([3.0, 1.0, 4.0, 2.0, 6.0, 1.0])
    monkeypatch.setattr(race, "seconds", lambda _: next(times))
    slower = race.race("case", "this", "that", int, int, at_most=2.5, rounds=3, warm=False)
    assert (slower.ours, slower.theirs, slower.ratio, slower.spread) == (4, 1, 3, 1)  # of 3, 2 and 6
    assert not slower.holds
    times = iter([3.0, 1.0, 4.0, 2.0, 6.0, 1.0])
    faster = race.race("case", "this", "that", int, int, at_least=0.3, rounds=3, warm=False)
    assert faster.ratio == pytest.approx(1 / 3)
    assert faster.holds


SMALL = {
    "sweep": partial(cases.sweep, sizes=((4, 8),)),
    "compiling": partial(cases.compiling, shallow=3, depths=(3, 5), rounds=1),
    "convolution": partial(cases.convolution, depth=4),
    "probes": partial(cases.probes, dense=(3, 8, 4), conv=(4, 2, 4)),
    "monitor": partial(cases.monitor, dense=(3, 8, 4), conv=(4, 2, 4), rounds=1),
    "training": partial(cases.training, runs=(1, 1), steps=1),
}


def test_the_command_prints_a_table_and_records_where_it_came_from(monkeypatch, tmp_path, capsys):
    for name, case in SMALL.items():
        monkeypatch.setitem(cases.CASES, name, case)
    for name in ("depth_scan", "sweep_shares", "matrix_product_peak"):
        monkeypatch.setattr(record, name, partial(SMALL_RECORDS[name]))
    main(["bench", *SMALL, "--json", str(tmp_path / "bench.json")])
    found = record.Record.read(tmp_path / "bench.json")
    assert {row.case for row in found.rows} == set(SMALL)
    assert found.provenance["command"].startswith("python -m gradcourse bench sweep")
    assert f"jax {jax.__version__}" in str(found)
    assert {point["way"] for point in found.depth_scan} >= {"one sweep, scanned", "jax.jacrev per layer"}
    assert all(share > 0 for share in found.shares_of_peak.values())
    printed = capsys.readouterr().out
    assert all(row.setting in printed for row in found.rows)


SMALL_RECORDS = {
    "depth_scan": partial(record.depth_scan, depths=(2,), rounds=1),
    "sweep_shares": partial(record.sweep_shares, sizes=((4, 8),), rounds=1),
    "matrix_product_peak": partial(record.matrix_product_peak, size=64, rounds=1),
}


def test_an_unknown_case_is_refused_and_a_missing_package_is_said(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        main(["bench", "swep"])
    assert "did you mean 'sweep'?" in capsys.readouterr().err
    monkeypatch.setattr(record, "find_spec", lambda package: None)
    assert record.run(["torch"]) == []
    assert "torch: left off, torch is not installed" in capsys.readouterr().err
