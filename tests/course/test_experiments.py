"""The recorder, and every recorded experiment: a slice of it is repeated and has to give what is recorded."""

import json
import subprocess
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from gradcourse.cli.main import main
from gradcourse.course.experiments import EXPERIMENTS, _common
from gradcourse.course.recording import Experiment, Results, grid

DATA = Path(__file__).parents[2] / "book" / "data"
RECORDED = [experiment for experiment in EXPERIMENTS.values() if (DATA / f"{experiment.name}.json").exists()]


@pytest.mark.parametrize("experiment", RECORDED, ids=lambda experiment: experiment.name)
def test_a_slice_repeated_gives_what_is_recorded(experiment: Experiment) -> None:
    results = Results.read(DATA / f"{experiment.name}.json")
    assert [point["given"] for point in results.points] == [dict(point) for point in experiment.points]
    assert results.provenance["command"] == f"python -m gradcourse experiment {experiment.name}"
    assert experiment.check in experiment.points
    apart = experiment.differences(results)
    assert apart
    assert max(apart.values()) < 0.01, apart


def test_what_is_checked_is_the_first_point_with_the_given_values() -> None:
    listed = partial(_common.experiment, powers, "small powers", grid(base=[2.0, 3.0], most=[4, 5]))
    assert listed().check == {"base": 2.0, "most": 4}
    assert listed(check={"base": 3.0}).check == {"base": 3.0, "most": 4}
    assert (listed().name, listed(name="others").name) == ("powers", "others")


def test_nothing_else_is_recorded() -> None:
    known = {f"{name}.json" for name in EXPERIMENTS} | {"bench_cpu.json", "bench_gpu.json"}
    assert {path.name for path in DATA.iterdir()} <= known


def powers(base: float, most: int = 3, calls: list | None = None):
    """The first powers of a number, and where they end."""
    if calls is not None:
        calls.append(base)
    return {"powers": jnp.power(base, jnp.arange(most, dtype=float)), "end": [jnp.inf, jnp.nan]}


def counting(calls: list, points=({"base": 2.0}, {"base": 3.0})) -> Experiment:
    """An experiment that tells which of its points it has measured."""
    measure = partial(powers, calls=calls)
    return Experiment("powers", "small powers", measure, points, check={"base": 3.0}, cheaper={"most": 2})


def test_a_recording_goes_on_where_it_stopped(tmp_path: Path) -> None:
    path, calls = tmp_path / "powers.json", []

    def interrupted(base: float):
        if base == 3.0:
            raise KeyboardInterrupt
        return powers(base, calls=calls)

    whole = counting(calls)
    with pytest.raises(KeyboardInterrupt):
        Experiment("powers", "small powers", interrupted, whole.points, {}).record(path)
    results = whole.record(path)
    assert calls == [2.0, 3.0]
    assert results == Results.read(path)
    assert json.loads(path.read_text())["points"][1]["found"]["powers"] == [1.0, 3.0, 9.0]
    assert [file.name for file in tmp_path.iterdir()] == ["powers.json"]
    whole.record(path)
    assert calls == [2.0, 3.0]


def test_results_are_chosen_by_what_was_given(tmp_path: Path) -> None:
    results = counting([]).record(tmp_path / "powers.json")
    np.testing.assert_array_equal(results.of("powers"), [[1, 2, 4], [1, 3, 9]])
    np.testing.assert_array_equal(results.of("powers", base=3.0), [[1, 3, 9]])
    np.testing.assert_array_equal(results.of("end", base=3.0), [[np.inf, np.nan]])
    with pytest.raises(ValueError, match=r"no point with {'base': 4.0}; recorded are {'base': \['2.0', '3.0'\]}"):
        results.of("powers", base=4.0)
    with pytest.raises(ValueError, match=r"quantity='roots' is not recorded; accepted here: \['end', 'powers'\]"):
        results.of("roots")


def test_a_repetition_tells_how_far_it_is_from_the_record(tmp_path: Path) -> None:
    experiment = counting([])
    results = experiment.record(tmp_path / "powers.json")
    finite = replace(experiment, measure=lambda **given: {"powers": powers(**given)["powers"]})
    assert finite.differences(results) == {"powers": 0.0}
    wrong = replace(experiment, measure=lambda **given: {"powers": 1.1 * powers(**given)["powers"]})
    assert wrong.differences(results)["powers"] == pytest.approx(0.1)


def test_two_machines_or_two_experiments_are_not_mixed(tmp_path: Path) -> None:
    path, experiment = tmp_path / "powers.json", counting([])
    experiment.record(path)
    other = Experiment("roots", "", powers, experiment.points, {})
    with pytest.raises(ValueError, match="holds the experiment 'powers', not 'roots'"):
        other.record(path)
    fields = json.loads(path.read_text())
    fields["provenance"]["device"] = "an abacus"
    path.write_text(json.dumps(fields))
    with pytest.raises(ValueError, match="was begun with device an abacus; here it is"):
        experiment.record(path)


@pytest.mark.parametrize("name", ["updates_to_escape", "normalised_sigmoids", "ablation"])  # infinities, NaN, many axes
def test_what_is_read_is_written_byte_for_byte(name: str, tmp_path: Path) -> None:
    Results.read(DATA / f"{name}.json").write(tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (DATA / f"{name}.json").read_bytes()


def test_a_table_has_an_axis_per_factor() -> None:
    points = tuple({"given": given, "found": {"place": [index]}} for index, given in enumerate(grid(a="xyz", b=[1, 2])))
    results = Results("places", "", {}, points)
    np.testing.assert_array_equal(results.table("place")[..., 0], [[0, 1], [2, 3], [4, 5]])
    np.testing.assert_array_equal(results.table("place", "b", "a")[..., 0], [[0, 2, 4], [1, 3, 5]])
    np.testing.assert_array_equal(results.table("place", a="y")[..., 0], [2, 3])
    in_disorder = replace(results, points=points[::-1])
    np.testing.assert_array_equal(in_disorder.table("place")[..., 0], [[5, 4], [3, 2], [1, 0]])
    with pytest.raises(ValueError, match=r"6 points with {} and 3 combinations of \['a'\]; accepted are factors"):
        results.table("place", "a")
    with pytest.raises(ValueError, match=r"5 points with {} and 6 combinations"):
        replace(results, points=points[1:]).table("place")


def test_an_activation_more_in_the_package_asks_for_no_new_recording() -> None:
    """Points are listed by name, and not taken from a catalogue of the package."""
    program = (
        "import json; from gradcourse.nn.activations import ACTIVATIONS; ACTIVATIONS['cube'] = ACTIVATIONS['tanh']; "
        "from gradcourse.course.experiments import EXPERIMENTS; "
        "print(json.dumps({name: one.points for name, one in EXPERIMENTS.items()}))"
    )
    done = subprocess.run([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, check=True)
    here = {name: experiment.points for name, experiment in EXPERIMENTS.items()}
    assert json.loads(done.stdout) == json.loads(json.dumps(here))
    assert "cube" not in done.stdout


def test_the_command_line_lists_and_refuses(capsys, tmp_path: Path) -> None:
    main(["experiment"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    for arguments, words in (
        (["experiment", "nonsense"], "experiment='nonsense' is not known"),
        (["experiment", next(iter(EXPERIMENTS)), "--to", str(tmp_path / "nowhere")], "is no folder"),
    ):
        with pytest.raises(SystemExit):
            main(arguments)
        assert words in capsys.readouterr().err
