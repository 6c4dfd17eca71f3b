"""What imports what: downward only, nothing before it is asked for, and every name at hand where it says it is."""

import ast
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import gradcourse

ROOT = Path(__file__).resolve().parents[1]
STUB = ast.parse((ROOT / "gradcourse" / "__init__.pyi").read_text(encoding="utf-8"))
AT_HAND = {
    name.asname or name.name: (statement.module, name.name)
    for statement in STUB.body
    if isinstance(statement, ast.ImportFrom)
    for name in statement.names
}


def run(*command: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *command], cwd=folder, capture_output=True, text=True, check=False)


def contracts(folder: Path) -> subprocess.CompletedProcess[str]:
    """The import linter's verdict on the package in a folder, by the contracts of pyproject.toml."""
    linter = "import sys; from importlinter.cli import lint_imports_command as lint; sys.path.insert(0, '.'); lint()"
    return run("-c", linter, "--no-cache", "--config", str(ROOT / "pyproject.toml"), folder=folder)


def test_imports_point_down() -> None:
    verdict = contracts(ROOT)
    assert verdict.returncode == 0, verdict.stdout + verdict.stderr


@pytest.mark.parametrize(
    ("module", "upward", "broken"),
    [
        ("nn/network.py", "from gradcourse.measure.jacobians import backward_jacobian_norms", "Imports point down"),
        ("theory/__init__.py", "import gradcourse.measure.jacobians", "Imports point down"),
        ("diagnosis/report.py", "import gradcourse.course.claims", "Nothing but the command line imports the course"),
    ],
)
def test_one_import_upward_is_found_out(module: str, upward: str, broken: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gradcourse", tmp_path / "gradcourse", ignore=shutil.ignore_patterns("__pycache__"))
    with (tmp_path / "gradcourse" / module).open("a", encoding="utf-8") as source:
        source.write(f"\n{upward}\n")
    verdict = contracts(tmp_path)
    assert verdict.returncode == 1, verdict.stdout + verdict.stderr
    assert f"{broken} BROKEN" in verdict.stdout


@pytest.mark.parametrize(
    ("module", "unwanted"),
    [
        ("gradcourse", {"jax", "numpy", "scipy", "matplotlib", "sklearn", "optax"}),
        ("gradcourse.diagnosis", {"matplotlib", "sklearn", "scipy.stats", "gradcourse.course", "gradcourse.cli"}),
        ("gradcourse.measure", {"matplotlib", "sklearn", "gradcourse.theory", "gradcourse.training"}),
        ("gradcourse.theory", {"matplotlib", "sklearn", "gradcourse.measure", "gradcourse.training"}),
        ("gradcourse.nn", {"matplotlib", "sklearn", "gradcourse.measure", "gradcourse.theory"}),
        ("gradcourse.training", {"matplotlib", "sklearn", "gradcourse.diagnosis"}),
    ],
)
def test_nothing_is_loaded_before_it_is_asked_for(module: str, unwanted: set[str]) -> None:
    loaded = run("-c", f"import sys, {module}; print(*sys.modules)")
    assert loaded.returncode == 0, loaded.stderr
    assert unwanted & set(loaded.stdout.split()) == set()


def test_the_stub_says_what_is_at_hand() -> None:
    assert sorted(AT_HAND) == sorted(gradcourse.__all__)
    assert set(AT_HAND) <= set(dir(gradcourse))


@pytest.mark.parametrize("name", AT_HAND)
def test_a_name_at_hand_is_what_the_stub_says(name: str) -> None:
    module, original = AT_HAND[name]
    if module is None:
        assert getattr(gradcourse, name) is import_module(f"gradcourse.{original}")
    else:
        assert getattr(gradcourse, name) is getattr(import_module(f"gradcourse.{module}"), original)
