"""The command line: what it prints, what it exits with, and that a mistake costs one line."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path
from textwrap import dedent

import jax
import numpy as np
import pytest

import gradcourse as gc
from gradcourse.cli.main import main
from gradcourse.course import ledger
from gradcourse.course.bench import record
from gradcourse.course.claims import CLAIMS

HEALTHY, FINDINGS, USAGE, THEIRS = 0, 1, 2, 3


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as stopped:
        main(arguments)
    assert stopped.value.code == USAGE
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert "Traceback" not in printed.err
    return printed.err


# ---- diagnose

MODEL = """
    import jax, jax.numpy as jnp
    import gradcourse as gc
    from dataclasses import dataclass

    DATA = gc.digits()
    BATCH = (DATA.x_train[:32], DATA.y_train[:32])

    @dataclass
    class Settings:
        scale: float = 0.1

    def model(params, x):
        for weight in params["hidden"]:
            x = jax.nn.sigmoid(x @ weight)
        return x @ params["readout"]

    def drawn(layers, scale):
        keys = jax.random.split(jax.random.key(0), layers + 1)
        shapes = [(64, 16)] + [(16, 16)] * (layers - 1) + [(16, 10)]
        *hidden, readout = (scale * jax.random.normal(key, shape) for key, shape in zip(keys, shapes))
        return {"hidden": hidden, "readout": readout}

    def vanishing():
        print("hello")
        return model, drawn(5, 0.1), BATCH

    def sound():
        return {"model_or_loss": model, "params": drawn(2, 0.5), "batch": BATCH}

    def nothing():
        return None

    def two():
        return 1, 2

    def misnamed():
        return {"modle_or_loss": None}

    def broken():
        raise ValueError("of my own making")

    def raises_inside():
        def model(params, x):
            raise ValueError("deep in the model")
        return model, {"w": jnp.ones((64, 10))}, BATCH

    def unusable():
        return gc.mlp(64, [30], 10), {"w": 1.0}, BATCH
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A file of the user's."""
    path = tmp_path / "theirs.py"
    path.write_text(dedent(MODEL), encoding="utf-8")
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield "theirs.py"
    sys.modules.pop("theirs", None)


def test_the_exit_code_tells_whether_a_model_is_healthy(file, capsys):
    diagnosis = pytest.importorskip("gradcourse.diagnosis.api")
    assert main(["diagnose", f"{file}:sound"]) == HEALTHY
    assert "readout" in capsys.readouterr().out
    assert main(["diagnose", f"{file}:vanishing", "--json", "--picture", "figure.svg"]) == FINDINGS
    printed = capsys.readouterr()
    report = json.loads(printed.out)  # and nothing else
    assert "hello" in printed.err
    given = import_module("theirs").vanishing()
    assert report["slope"] == diagnosis.diagnose(*given).to_dict()["slope"]
    assert [one["kind"] for one in report["findings"]][:1] == ["vanishing"]
    assert "<svg" in Path("figure.svg").read_text(encoding="utf-8")
    assert main(["diagnose", "theirs:sound"]) == HEALTHY  # as a module


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("{file}", "names no function; accepted is path.py:function"),
        ("elsewhere.py:f", "elsewhere.py is no file"),
        ("no_such_module:f", "no_such_module is no module that Python finds here"),
        ("{file}:vanish", "function='vanish' is not known; did you mean 'vanishing'?"),
        ("{file}:nothing", "returned a NoneType; accepted is (model_or_loss, params, batch), or a dictionary"),
        ("{file}:two", "returned 2 values; accepted is (model_or_loss, params, batch)"),
        ("{file}:misnamed", "'modle_or_loss' is not known; did you mean 'model_or_loss'?"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(file, capsys, target, words):
    assert words in refused(capsys, "diagnose", target.format(file=file))


@pytest.mark.usefixtures("no_runtime_typecheck")
def test_our_own_complaint_about_a_model_is_one_line(file, capsys):
    assert "params" in refused(capsys, "diagnose", f"{file}:unusable")


@pytest.mark.parametrize(
    ("function", "words"), [("broken", "of my own making"), ("raises_inside", "deep in the model")]
)
def test_an_error_of_the_users_is_shown_whole(file, capsys, function, words):
    assert main(["diagnose", f"{file}:{function}"]) == THEIRS
    error = capsys.readouterr().err
    assert error.startswith("Traceback")
    assert 'theirs.py", line' in error
    assert f"ValueError: {words}" in error


def test_a_file_that_cannot_be_imported_is_shown_whole(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    path = tmp_path / "wrong.py"
    path.write_text("import no_such_thing_anywhere\n", encoding="utf-8")
    assert main(["diagnose", f"{path}:f"]) == THEIRS
    assert "wrong.py" in (error := capsys.readouterr().err)
    assert "No module named 'no_such_thing_anywhere'" in error


# ---- profile

SMALL = ["profile", "--depth", "6", "--width", "20", "--seeds", "3", "--activation", "tanh"]


@pytest.mark.parametrize("quantity", ["backward", "forward", "layer", "gradient"])
def test_a_profile_is_that_of_the_package(quantity, capsys):
    assert main([*SMALL, "--init", "he", "--quantity", quantity, "--json"]) == HEALTHY
    found = json.loads(capsys.readouterr().out)
    data, network = gc.digits(), gc.mlp(64, [20] * 5, 10, activation="tanh", init="he_normal")
    x, y = data.x_train[:50], data.y_train[:50]
    measures = {
        "backward": (gc.backward_jacobian_norms, gc.theory.meanfield.backward_jacobian_norms),
        "forward": (gc.forward_jacobian_norms, gc.theory.meanfield.forward_jacobian_norms),
        "layer": (gc.layer_jacobian_norms, gc.theory.meanfield.layer_jacobian_norms),
        "gradient": (lambda network, params, x: gc.activation_gradient_norms(network, params, x, y), None),
    }
    measure, predict = measures[quantity]
    measured = gc.over_seeds(measure, network, x, seeds=3, key=jax.random.key(0))
    np.testing.assert_allclose(found["measured"], measured.log10_norm.mean(axis=0), atol=1e-6)
    assert found["layers"] == list(network.layer_names)
    assert found["slope"]["decades_per_layer"] == pytest.approx(measured.slope()[0], abs=1e-6)
    low, high = np.transpose(found["interval"])
    assert ((low < found["measured"]) & (found["measured"] < high)).all()
    if predict is None:
        assert found["predicted"] is None
    else:
        np.testing.assert_allclose(found["predicted"], predict(network, x).log10_norm, atol=1e-6)


def test_a_profile_is_drawn_in_few_lines(capsys, tmp_path):
    path = tmp_path / "figure.png"
    arguments = ["--depth", "60", "--width", "10", "--activation", "sigmoid", "--init", "glorot", "--seeds", "2"]
    assert main(["profile", *arguments, "--picture", str(path)]) == HEALTHY
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "60 layers of 10, sigmoid, glorot_uniform; 2 seeds, 50 digits"
    drawn = [line for line in lines if " dense " in line]
    assert len(drawn) == 21
    places = [line.index("o") for line in drawn]
    assert places == sorted(places)  # the norm grows towards the output
    assert "39 layers between these are not shown" in lines[-4]
    assert lines[-2].startswith("slope +0.6")
    assert lines[-1].startswith("a factor of ten is lost every 1.")
    assert path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--depth", "5", "--init", "glorott"], "init='glorott' is not known; did you mean 'glorot'?"),
        (["--depth", "5", "--activation", "sigmod"], "did you mean 'sigmoid'?"),
        (["--depth", "5", "--quantity", "backwards"], "did you mean 'backward'?"),
        (["--depth", "1"], "depth=1 is accepted from 2 up"),
        (["--depth", "5", "--width", "0"], "width=0 is accepted from 1 up"),
        (["--depth", "many"], "argument --depth: invalid int value: 'many'"),
        (["--depth", "5", "--picture", "figure.xyz"], "is accepted with one of the endings"),
        (["--depth", "5", "--picture", "nowhere/figure.png"], "is in no folder that exists; make nowhere first"),
        ([], "the following arguments are required: --depth. See gradcourse profile --help."),
    ],
)
def test_a_wrong_profile_is_refused_in_one_line(arguments, words, capsys):
    assert words in refused(capsys, "profile", *arguments)


# ---- claims


def test_claims_come_with_their_verdicts_and_records(capsys):
    book = Path(__file__).parents[2] / "book"
    assert main(["claims", "--book", str(book), "--json"]) == HEALTHY
    found = json.loads(capsys.readouterr().out)
    entries = ledger.ledger(ledger.in_book(book))
    assert [(one["id"], one["verdict"]) for one in found] == [(entry.claim.id, entry.verdict) for entry in entries]
    assert [len(one["records"]) for one in found] == [len(entry.measurements) for entry in entries]
    assert main(["claims", "--book", str(book)]) == HEALTHY
    text = " ".join(capsys.readouterr().out.split())
    first = found[0]["records"][0]
    assert f"{first['quantity']} {first['measured']}" in text
    assert main(["claims"]) == HEALTHY
    assert " ".join(capsys.readouterr().out.split()) == text


def test_a_folder_without_notebooks_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["claims"]) == HEALTHY  # from anywhere
    assert sum(line.startswith("C") for line in capsys.readouterr().out.splitlines()) == len(CLAIMS)
    assert "holds no notebooks of the course" in refused(capsys, "claims", "--book", str(tmp_path))


# ---- the rest


def test_bench_and_experiment_are_refused_in_one_line(capsys):
    assert "case='swep' is not known; did you mean 'sweep'?" in refused(capsys, "bench", "swep")
    assert "experiment='nonsense' is not known" in refused(capsys, "experiment", "nonsense")
    assert "invalid choice: 'profle'" in refused(capsys, "profle")
    assert "required: COMMAND" in refused(capsys)


def test_a_bug_of_ours_is_not_taken_for_wrong_usage(monkeypatch):
    """What a library complains about that the input checks let through keeps its traceback."""
    monkeypatch.setattr(record, "run", lambda *_: np.ones(2).reshape(3))
    with pytest.raises(ValueError, match="cannot reshape"):
        main(["bench"])


def test_every_exit_code_is_in_the_help_of_every_command(capsys):
    for command in ([], ["diagnose"], ["profile"], ["claims"], ["bench"], ["experiment"]):
        with pytest.raises(SystemExit) as stopped:
            main([*command, "--help"])
        assert stopped.value.code == HEALTHY
        printed = capsys.readouterr().out
        assert all(f"\n  {code}  " in printed for code in (HEALTHY, FINDINGS, USAGE, THEIRS))


def test_the_package_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "gradcourse", "claims", "--book", "nowhere"], capture_output=True, text=True, check=False
    )
    assert done.returncode == USAGE
    assert done.stderr.startswith("gradcourse claims: nowhere holds no notebooks")


def test_help_is_there_before_jax_is():
    program = "import sys; from gradcourse.cli.main import main; main(sys.argv[1:])"
    told = "import atexit, sys; atexit.register(lambda: print('jax' in sys.modules, file=sys.stderr)); "
    for arguments in (["--help"], ["profile", "--help"]):
        done = subprocess.run(
            [sys.executable, "-c", told + program, *arguments], capture_output=True, text=True, check=True
        )
        assert done.stderr.split() == ["False"]


def test_experiments_are_listed_anywhere_and_recorded_where_there_is_a_folder(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["experiment"]) == HEALTHY
    assert "ablation: " in capsys.readouterr().out
    assert "--to book/data is no folder; make it, or name another with --to" in refused(
        capsys, "experiment", "ablation"
    )
