"""What is packaged is enough: the commands work from a copy of exactly the files that a wheel would hold."""

import json
import os
import shutil
import subprocess
import sys
from contextlib import chdir
from pathlib import Path

import pytest

from gradcourse.course.experiments import EXPERIMENTS
from gradcourse.course.ledger import ledger, packaged

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package as setuptools builds it, from the sources alone."""
    build_py = pytest.importorskip("setuptools.command.build_py").build_py
    distribution = pytest.importorskip("setuptools.dist").Distribution({"script_name": "setup.py"})
    sources, folder = (tmp_path_factory.mktemp(name) for name in ("sources", "wheel"))
    shutil.copytree(ROOT / "gradcourse", sources / "gradcourse", ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, sources)
    with chdir(sources):
        distribution.parse_config_files(["pyproject.toml"])
        command = build_py(distribution)
        command.build_lib, command.compile = str(folder), False
        command.ensure_finalized()
        command.run()
    return folder


def told(unpacked: Path, *arguments: str) -> str:
    """What a command prints where there is no repository."""
    elsewhere = unpacked / "elsewhere"
    elsewhere.mkdir(exist_ok=True)
    environment = os.environ | {"PYTHONPATH": str(unpacked)}
    command = [sys.executable, "-m", "gradcourse", *arguments]
    done = subprocess.run(command, cwd=elsewhere, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return done.stdout


def test_claims_have_their_verdicts_and_types_are_known(unpacked: Path) -> None:
    found = json.loads(told(unpacked, "claims", "--json"))
    assert [one["verdict"] for one in found] == [entry.verdict for entry in ledger(packaged())]
    assert {"py.typed", "__init__.pyi"} <= {path.name for path in (unpacked / "gradcourse").iterdir()}
    assert not [path for path in unpacked.iterdir() if path.name not in ("gradcourse", "elsewhere")]


def test_experiments_are_listed(unpacked: Path) -> None:
    assert [line.partition(":")[0] for line in told(unpacked, "experiment").splitlines()] == list(EXPERIMENTS)
