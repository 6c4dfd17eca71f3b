"""How the book's reference is made of docstrings; that it is complete is seen on the built page, in `test_site.py`."""

import ast
import sys
from importlib import invalidate_caches
from pathlib import Path
from textwrap import dedent

import api_reference as api
import pytest


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest):
    """Makes a package of the given modules."""
    name = f"package_of_{request.node.name.partition('[')[0]}"
    monkeypatch.syspath_prepend(tmp_path)

    def make(**modules: str):
        folder = tmp_path / name
        folder.mkdir()
        for module, source in {"__init__": "__all__ = []", **modules}.items():
            (folder / f"{module}.py").write_text(dedent(source).replace("PACKAGE", name), encoding="utf-8")
        invalidate_caches()
        return api.Package(name)

    yield make
    sys.modules.pop(name, None)


# ---- the docstrings' Markdown


@pytest.mark.parametrize(
    ("docstring", "markdown"),
    [
        ("Plain `code` and *words*.", "Plain `code` and *words*."),
        ("`f`, `f()` and `f(x)`", "{py:obj}`f <p.f>`, {py:obj}`f() <p.f>` and `f(x)`"),
        (r"$\|J\|_F^2 = f$ and $$ f $$", r"$\|J\|_F^2 = f$ and $$ f $$"),
        ("- `f`: one;\n- `g`: two.", "- {py:obj}`f <p.f>`: one;\n- `g`: two."),
        ("{cite}`f` and ``f``", "{cite}`f` and ``f``"),
        ("So:\n\n>>> f(1)  # `f`\n2", "So:\n\n```pycon\n>>> f(1)  # `f`\n2\n```"),
        (">>> f(\n...     1)\n2\n\n`f`", "```pycon\n>>> f(\n...     1)\n2\n```\n\n{py:obj}`f <p.f>`"),
        (">>> f(1)\n>>> f(2)\n\n>>> f(3)", "```pycon\n>>> f(1)\n>>> f(2)\n```\n\n```pycon\n>>> f(3)\n```"),
        ("- so:\n\n  >>> f(1)\n  2\n\n- and", "- so:\n\n  ```pycon\n  >>> f(1)\n  2\n  ```\n\n- and"),
    ],
)
def test_docstrings_become_the_books_markdown(docstring: str, markdown: str) -> None:
    link = {"f": "p.f", "f()": "p.f"}.get
    assert api.markdown(docstring, link) == markdown


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        (
            "def f(x: Float[Array, 'a *b'], *, n: int = 1) -> Scaled: ...",
            "f(x: Float[Array, 'a *b'], *, n: int=1) -> Scaled",
        ),
        ("def f(x: 'Later') -> 'Later': ...", "f(x: 'Later') -> Later"),
        ("def f(a, b=1, /, c=2, *args, d, **kwargs): ...", "f(a, b=1, /, c=2, *args, d, **kwargs)"),
        ("def f(): ...", "f()"),
    ],
)
def test_signatures_of_functions(source: str, shown: str) -> None:
    (node,) = ast.parse(source).body
    assert api.signature(node) == shown


@pytest.mark.parametrize(
    ("source", "shown"),
    [
        ("def f(self, x, y=1): ...", "f(x, y=1)"),
        ("def f(self=None): ...", "f()"),
        ("@classmethod\ndef f(cls, x): ...", "f(x)"),
        ("@staticmethod\ndef f(x): ...", "f(x)"),
        ("def f(self, /, x): ...", "f(x)"),
    ],
)
def test_signatures_of_methods_leave_self_out(source: str, shown: str) -> None:
    (node,) = ast.parse(source).body
    assert api.signature(node, method=True) == shown


CLASSES = '''
"""Classes."""
__all__ = ["Data", "Made", "Plain", "Pair"]

@dataclass(frozen=True)
class _Base:
    """Private."""
    size: int = 2

    def shared(self):
        """Of the base."""

    def mine(self):
        """Of the base."""

@dataclass(frozen=True)
class Data(_Base):
    """Words."""
    kind: ClassVar[str] = "data"
    layers: tuple[str, ...] = field(metadata={"static": True})
    many: list[int] = field(default_factory=list)
    late: int = field(init=False)

    def mine(self):
        """Of the class."""

    def _hidden(self):
        pass

class Made:
    """Words."""
    def __init__(self, width: int): ...

class Plain:
    """Words."""

class Pair(NamedTuple):
    """Words."""
    first: int
    second: int = 0
'''


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("Data", "Data(size: int = 2, layers: tuple[str, ...], many: list[int] = ...)"),
        ("Made", "Made(width: int)"),
        ("Plain", "Plain"),
        ("Pair", "Pair(first: int, second: int = 0)"),
    ],
)
def test_what_a_class_is_made_of(package, name: str, shown: str) -> None:
    made = package(classes=CLASSES)
    (module,) = made.modules.values()
    assert api.constructor(module, module.definitions[name]) == shown


def test_methods_of_private_bases_are_the_classes_own(package) -> None:
    made = package(classes=CLASSES)
    (module,) = made.modules.values()
    methods = module.methods(module.definitions["Data"])
    assert {name: ast.get_docstring(node) for name, node in methods.items()} == {
        "mine": "Of the class.",
        "shared": "Of the base.",
    }


# ---- the links


def test_names_lead_to_what_they_mean_where_they_stand() -> None:
    package = api.Package("gradcourse")
    jacobians, meanfield = (package.modules[f"gradcourse.{name}"] for name in ("measure.jacobians", "theory.meanfield"))
    norms = "backward_jacobian_norms"
    assert package.find(norms, jacobians) == f"gradcourse.measure.jacobians.{norms}"
    assert package.find(norms, meanfield) == f"gradcourse.theory.meanfield.{norms}"
    assert package.find(norms, package.modules["gradcourse.plots"]) == f"gradcourse.measure.jacobians.{norms}"
    assert package.find("Profile.slopes", jacobians) == "gradcourse.profile.Profile.slopes"
    assert package.find("gradcourse.measure.directions", jacobians) == "gradcourse.measure.directions"
    assert package.find("diagnosis.findings", jacobians) == "gradcourse.diagnosis.findings"
    assert package.find("gc.nn.Residual", jacobians) == "gradcourse.nn.blocks.Residual"
    assert package.find("slopes", package.modules["gradcourse.profile"], "gradcourse.profile.Profile") == (
        "gradcourse.profile.Profile.slopes"
    )
    assert package.find("Profile", jacobians, hidden=frozenset({"Profile"})) is None
    assert package.find("float32", jacobians) is None
    assert package.find("prod", jacobians) is None


def test_names_are_shown_as_one_would_write_them() -> None:
    package = api.Package("gradcourse")
    modules = package.modules
    assert package.call(modules["gradcourse.nn.network"], "mlp") == "gc.mlp"
    assert package.call(modules["gradcourse.plots.figures"], "profiles") == "gc.plots.profiles"
    assert package.call(modules["gradcourse.nn.blocks"], "Residual") == "gc.nn.Residual"
    assert package.call(modules["gradcourse.nn.network"], "Stage") == "gradcourse.nn.network.Stage"


def test_what_a_package_hands_on_has_its_entry_where_it_is_defined(package) -> None:
    made = package(
        __init__="from PACKAGE.inner import f\n__all__ = ['f']",
        inner='"""Words."""\nfrom PACKAGE import core\nfrom PACKAGE.core import f\n__all__ = ["core", "f"]',
        core='"""Words."""\n__all__ = ["f"]\ndef f():\n    """Words."""',
    )
    texts = {name.rpartition(".")[2]: api.module_text(made, module) for name, module in made.modules.items()}
    assert "py:function" in texts["core"]
    assert "py:function" not in texts["inner"]
    assert made.call(made.modules[f"{made.name}.core"], "f") == "gc.f"


# ---- nothing is forgotten


def test_every_public_name_has_an_entry(package) -> None:
    source = '''
        """Words."""
        __all__ = ["LIMIT", "TABLE", "Kind", "f"]

        # What is not passed.
        LIMIT: int = 3
        TABLE = {}
        """What is looked up."""
        Kind = str

        def f(x):
            """See `LIMIT`; `x` is `x`."""
    '''
    made = package(one=source, _two="", __main__="raise SystemExit")
    (module,) = made.modules.values()
    text = api.module_text(made, module)
    assert '{py:data} LIMIT\n:type: "int"\n:value: "3"\n\nWhat is not passed.' in text
    assert '{py:data} TABLE\n:value: "{}"\n\nWhat is looked up.' in text
    assert '{py:data} Kind\n:value: "str"' in text
    assert "{py:function} f(x)\n\nSee {py:obj}`LIMIT <" in text
    assert "`x` is `x`" in text


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ('"""Words."""', r"one has no __all__"),
        ('__all__ = ["f"]\ndef f(): ...', r"one is public and has no docstring"),
        ('"""Words."""\n__all__ = ["f"]\ndef f(): ...', r"one\.f is public and has no docstring"),
        ('"""Words."""\n__all__ = ["C"]\nclass C: ...', r"one\.C is public and has no docstring"),
        (
            '"""Words."""\n__all__ = ["C"]\nclass C:\n    """Words."""\n    def f(self): ...',
            r"one\.C\.f is public and has no docstring",
        ),
        ('"""Words."""\n__all__ = ["g"]', r"one has 'g' in its __all__ and does not define it"),
    ],
)
def test_what_says_nothing_stops_the_build(package, source: str, words: str) -> None:
    made = package(one=source)
    (module,) = made.modules.values()
    with pytest.raises(api.Undocumented, match=words):
        api.module_text(made, module)
