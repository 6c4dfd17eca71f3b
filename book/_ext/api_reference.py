"""`{api-reference} gradcourse`: the reference of a package, made of its docstrings, which are Markdown.

First a table of its modules, then a section for each: its docstring and, in source order, every name of its
`__all__` that it defines; what a package merely hands on has its entry where it is defined. Modules are found by
looking and read without being imported, so signatures are shown as they were written, and none can be forgotten: a
module without `__all__` and a public name without a docstring stop the build.

A name in backticks leads to what it means in the module where it is written: a parameter is itself, a class's own
methods come next, then what the module defines or imports, then what the package hands out.
"""

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from importlib.util import find_spec
from inspect import cleandoc
from pathlib import Path
from pkgutil import walk_packages
from typing import Any

from docutils import nodes
from docutils.statemachine import StringList
from sphinx import addnodes
from sphinx.application import Sphinx
from sphinx.errors import SphinxError
from sphinx.util.docutils import SphinxDirective

ALIAS = "gc"  # import gradcourse as gc
FOLDED = "fold-contents"  # what this extension notes of a page
SHORT = 72  # characters of a value that is shown
NAME = re.compile(r"(?<![`}\w])`([A-Za-z_][\w.]*(?:\(\))?)`(?!`)")

Function = ast.FunctionDef | ast.AsyncFunctionDef
Data = ast.Assign | ast.AnnAssign
Link = Callable[[str], str | None]


class Undocumented(SphinxError):
    """Something public has no words of its own."""

    category = "The reference is not complete"


# ---- what there is


@dataclass(frozen=True)
class Module:
    """One module's name and source."""

    name: str
    path: Path

    @cached_property
    def source(self) -> str:
        """The text of the file."""
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def tree(self) -> ast.Module:
        """The same, parsed."""
        return ast.parse(self.source)

    @cached_property
    def docstring(self) -> str:
        """The module's own."""
        return docstring(self.tree, self.name)

    @cached_property
    def definitions(self) -> dict[str, Function | ast.ClassDef | Data]:
        """What stands under each name that the module defines, in source order."""
        found: dict[str, Function | ast.ClassDef | Data] = {}
        for node in self.tree.body:
            if isinstance(node, Function | ast.ClassDef):
                found[node.name] = node
            elif isinstance(node, Data):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                found |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        return found

    @cached_property
    def public(self) -> list[str]:
        """The names in `__all__`, in source order where they are defined here."""
        if not isinstance(exported := self.definitions.get("__all__"), Data) or exported.value is None:
            raise Undocumented(f"{self.name} has no __all__.")
        order = list(self.definitions)
        names: list[str] = ast.literal_eval(exported.value)
        return sorted(names, key=lambda name: order.index(name) if name in order else len(order))

    @cached_property
    def namespace(self) -> dict[str, str]:
        """The full name of everything that the module defines or imports at its top."""
        found: dict[str, str] = {}
        for node in self.tree.body:
            if isinstance(node, ast.ImportFrom):  # relative ones stand in a package's own stub
                origin = ".".join(filter(None, [self.name if node.level else None, node.module]))
                found |= {alias.asname or alias.name: f"{origin}.{alias.name}" for alias in node.names}
            elif isinstance(node, ast.Import):
                found |= {alias.asname: alias.name for alias in node.names if alias.asname}
        return found | {name: f"{self.name}.{name}" for name in self.definitions}

    def bases(self, node: ast.ClassDef) -> Iterator[ast.ClassDef]:
        """The private classes of this module that a class inherits from, the nearest first."""
        for base in map(ast.unparse, node.bases):
            parent = self.definitions.get(base)
            if base.startswith("_") and isinstance(parent, ast.ClassDef):
                yield parent
                yield from self.bases(parent)

    def methods(self, node: ast.ClassDef) -> dict[str, Function]:
        """The public methods and properties in source order, then those of private bases, which have no entry."""
        found: dict[str, Function] = {}
        for owner in (node, *self.bases(node)):
            for member in owner.body:
                if isinstance(member, Function) and not member.name.startswith("_"):
                    found.setdefault(member.name, member)
        return found


@dataclass(frozen=True)
class Package:
    """A package and its public modules."""

    name: str

    @cached_property
    def modules(self) -> dict[str, Module]:
        """Every module but the private ones, by name; the package itself is not one of them."""
        spec = find_spec(self.name)
        if spec is None or spec.submodule_search_locations is None:
            raise Undocumented(f"there is no package {self.name}.")
        names = (module.name for module in walk_packages(spec.submodule_search_locations, f"{self.name}."))
        found = {}
        for name in sorted(name for name in names if not re.search(r"\._", name)):
            origin = getattr(find_spec(name), "origin", None)
            assert origin is not None, name
            found[name] = Module(name, Path(origin))
        return found

    @cached_property
    def front(self) -> Module:
        """The package's own file, which hands out what is used most."""
        spec = find_spec(self.name)
        assert spec is not None
        assert spec.origin is not None
        stub = Path(spec.origin).with_suffix(".pyi")  # of a package that loads what it hands out when it is asked for
        return Module(self.name, stub if stub.exists() else Path(spec.origin))

    @cached_property
    def handed_out(self) -> dict[str, str]:
        """The shortest name, such as `gc.mlp` or `gc.nn.Residual`, of all that the package hands out, by full name."""
        found: dict[str, str] = {}
        for name in self.front.public:
            short, full = f"{ALIAS}.{name}", self.defined(self.front.namespace[name])
            found[full] = short
            if module := self.modules.get(full):
                for inner in module.public:
                    found.setdefault(self.defined(module.namespace[inner]), f"{short}.{inner}")
        return found | {self.defined(self.front.namespace[name]): f"{ALIAS}.{name}" for name in self.front.public}

    def defined(self, full: str) -> str:
        """The full name under which something is defined that a module may have from its neighbour."""
        owner, _, last = full.rpartition(".")
        while full not in self.modules and owner in self.modules:
            further = self.modules[owner].namespace.get(last, full)
            if further == full:
                break
            full, (owner, _, last) = further, further.rpartition(".")
        return full

    @cached_property
    def entries(self) -> set[str]:
        """The full names of all that has an entry."""
        found = set(self.modules)
        for module in self.modules.values():
            for name in module.public:
                if (full := f"{module.name}.{name}") in self.modules or full != self.defined(full):
                    continue
                found.add(full)
                if isinstance(node := module.definitions.get(name), ast.ClassDef):
                    found |= {f"{full}.{method}" for method in module.methods(node)}
        return found

    def is_in_front(self, module: Module) -> bool:
        """Whether the package hands out the module or something of it."""
        return any(full == module.name or full.rpartition(".")[0] == module.name for full in self.handed_out)

    def call(self, module: Module, name: str) -> str:
        """What a reader writes for a name: `gc.mlp`, `gc.plots.profiles`, `gradcourse._checks.known_name`."""
        return self.handed_out.get(f"{module.name}.{name}") or f"{self.handed_out.get(module.name, module.name)}.{name}"

    def find(self, name: str, module: Module, within: str = "", hidden: frozenset[str] = frozenset()) -> str | None:
        """The full name of the entry that `name` means in `module`, within a class perhaps; `hidden` mean no entry."""
        head, _, rest = name.removeprefix(f"{ALIAS}.").removesuffix("()").partition(".")
        if head in hidden:
            return None
        for place in (within, module.namespace.get(head), self.front.namespace.get(head), head):
            if place is None:
                continue
            full = f"{place}.{head}" if place == within else place
            full = f"{full}.{rest}" if rest else full
            for target in (self.defined(full), self.defined(f"{self.name}.{full}")):
                if target in self.entries:
                    return target
                owner, _, last = target.rpartition(".")  # a method of a class that is handed on
                if (method := f"{self.defined(owner)}.{last}") in self.entries:
                    return method
        return None


def docstring(node: ast.Module | Function | ast.ClassDef, name: str) -> str:
    """The docstring, without indentation; none, or an empty one, is an error."""
    if text := ast.get_docstring(node):
        return text
    raise Undocumented(f"{name} is public and has no docstring.")


def words(module: Module, node: Data) -> str:
    """What is said of a constant: the string that follows it or the comment above it, if there is either."""
    following = module.tree.body[module.tree.body.index(node) + 1 :][:1]
    match following:
        case [ast.Expr(value=ast.Constant(value=str(text)))]:
            return cleandoc(text)
    above = module.source.splitlines()[: node.lineno - 1]
    comment: list[str] = []
    while above and (line := above.pop()).startswith("#"):
        comment.insert(0, line.lstrip("#: "))
    return "\n".join(comment)


# ---- how it is written


def markdown(text: str, link: Link = lambda name: None) -> str:
    r"""A docstring as the book's Markdown: examples in fences, and names in backticks linked where `link` knows them.

    >>> print(markdown("See `f`.\n\n>>> f(1)\n2", {"f": "package.f"}.get))
    See {py:obj}`f <package.f>`.
    <BLANKLINE>
    ```pycon
    >>> f(1)
    2
    ```
    """
    lines: list[str] = []
    fence = ""  # of the open example, with its indentation
    for line in [*text.splitlines(), ""]:
        if not fence and (prompt := re.match(r"( *)>>> ", line)):
            fence = f"{prompt[1]}```"
            lines.append(f"{fence}pycon")
        elif fence and not line.strip():
            lines.append(fence)
            fence = ""
        lines.append(line if fence else NAME.sub(partial(_linked, link), line))
    return "\n".join(lines).rstrip()


def _linked(link: Link, name: re.Match[str]) -> str:
    return f"{{py:obj}}`{name[1]} <{target}>`" if (target := link(name[1])) else name[0]


def arguments(parameters: ast.arguments, drop: int = 0) -> str:
    """A list of parameters, `drop` of them left out at the front."""
    positional = [*parameters.posonlyargs, *parameters.args]
    shown = ast.arguments(
        posonlyargs=parameters.posonlyargs[drop:],
        args=parameters.args[max(drop - len(parameters.posonlyargs), 0) :],
        vararg=parameters.vararg,
        kwonlyargs=parameters.kwonlyargs,
        kw_defaults=parameters.kw_defaults,
        kwarg=parameters.kwarg,
        defaults=parameters.defaults[-len(positional[drop:]) or len(parameters.defaults) :],
    )
    return f"({ast.unparse(shown)})"


def decorators(node: Function | ast.ClassDef) -> str:
    """The decorators' text."""
    return " ".join(map(ast.unparse, node.decorator_list))


def signature(node: Function, *, method: bool = False) -> str:
    """Name, parameters without `self`, and what is returned."""
    drop = int(method and "staticmethod" not in decorators(node))
    return f"{node.name}{arguments(node.args, drop)}{f' -> {annotation(node.returns)}' if node.returns else ''}"


def annotation(node: ast.expr) -> str:
    """An annotation's text, without the quotes of a name that is defined further down."""
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ast.unparse(node)


def fields(module: Module, node: ast.ClassDef) -> list[ast.AnnAssign]:
    """A data class's or named tuple's fields, those of private bases first."""
    owners = [*reversed([*module.bases(node)]), node]
    members = [member for owner in owners for member in owner.body if isinstance(member, ast.AnnAssign)]
    return [member for member in members if "ClassVar" not in ast.unparse(member.annotation)]


def constructor(module: Module, node: ast.ClassDef) -> str:
    """The class's name and what it is made of; the name alone if nothing says."""
    for owner in (node, *module.bases(node)):
        for member in owner.body:
            if isinstance(member, ast.FunctionDef) and member.name == "__init__":
                return f"{node.name}{arguments(member.args, 1)}"
    if "dataclass" not in decorators(node) and "NamedTuple" not in map(ast.unparse, node.bases):
        return node.name
    parameters = [
        f"{ast.unparse(field.target)}: {annotation(field.annotation)}{default}"
        for field in fields(module, node)
        if (default := field_default(field.value)) is not None
    ]
    keyword_only = ["*"] if "kw_only=True" in decorators(node) else []
    return f"{node.name}({', '.join(keyword_only + parameters)})"


def field_default(value: ast.expr | None) -> str | None:
    """How a field's default is written in the signature; None for a field that the constructor does not take."""
    if value is None:
        return ""
    if not (isinstance(value, ast.Call) and ast.unparse(value.func).endswith("field")):
        return f" = {ast.unparse(value)}"
    options = {option.arg: ast.unparse(option.value) for option in value.keywords}
    if options.get("init") == "False":
        return None
    if "default_factory" in options:
        return " = ..."
    return f" = {options['default']}" if "default" in options else ""


def entry(kind: str, heading: str, body: str, options: Mapping[str, str] = {}, *, depth: int = 4) -> str:
    """A directive of the Python domain; the fence of an outer one is longer."""
    fence = ":" * depth
    given = [f":{name}: {json.dumps(value, ensure_ascii=False) if value else ''}" for name, value in options.items()]
    return "\n".join([f"{fence}{{py:{kind}}} {heading}", *given, "", body, fence])


def names(parameters: ast.arguments) -> set[str]:
    """The parameters' names."""
    every = [*parameters.posonlyargs, *parameters.args, *parameters.kwonlyargs, parameters.vararg, parameters.kwarg]
    return {parameter.arg for parameter in every if parameter}


def function_entry(package: Package, module: Module, node: Function) -> str:
    """One function."""
    full = f"{module.name}.{node.name}"
    link = partial(package.find, module=module, hidden=frozenset({node.name} | names(node.args)))
    return entry("function", signature(node), markdown(docstring(node, full), link))


def class_entry(package: Package, module: Module, node: ast.ClassDef) -> str:
    """One class with its methods."""
    full = f"{module.name}.{node.name}"
    own = {ast.unparse(field.target) for field in fields(module, node)} | {node.name}
    link = partial(package.find, module=module, within=full)
    body = [markdown(docstring(node, full), partial(link, hidden=frozenset(own)))]
    for base in map(ast.unparse, node.bases):
        if target := package.find(base, module):
            body.append(f"Base: {{py:obj}}`{base} <{target}>`, where the methods are that are not listed here.")
    for method in module.methods(node).values():
        hidden = frozenset({node.name, method.name} | names(method.args))
        text = markdown(docstring(method, f"{full}.{method.name}"), partial(link, hidden=hidden))
        if re.search(r"\b(cached_)?property\b", decorators(method)):
            returned = {"type": annotation(method.returns)} if method.returns else {}
            body.append(entry("property", method.name, text, returned))
        else:
            how = {kind: "" for kind in ("classmethod", "staticmethod") if kind in decorators(method)}
            body.append(entry("method", signature(method, method=True), text, how))
    return entry("class", constructor(module, node), "\n\n".join(body), depth=5)


def data_entry(package: Package, module: Module, name: str, node: Data) -> str:
    """One constant or type, with its value if that is short."""
    options = {}
    if isinstance(node, ast.AnnAssign):
        options["type"] = annotation(node.annotation)
    if node.value is not None and len(value := ast.unparse(node.value)) <= SHORT:
        options["value"] = value
    text = markdown(words(module, node), partial(package.find, module=module, hidden=frozenset({name})))
    return entry("data", name, text, options)


def module_text(package: Package, module: Module) -> str:
    """Everything about one module, without its heading."""
    parts = [
        f"```{{py:module}} {module.name}\n```",
        markdown(module.docstring, partial(package.find, module=module, hidden=frozenset({module.name}))),
    ]
    for name in module.public:
        if (full := f"{module.name}.{name}") in package.modules or full != package.defined(full):
            continue
        match module.definitions.get(name):
            case ast.FunctionDef() | ast.AsyncFunctionDef() as node:
                parts.append(function_entry(package, module, node))
            case ast.ClassDef() as node:
                parts.append(class_entry(package, module, node))
            case ast.Assign() | ast.AnnAssign() as node:
                parts.append(data_entry(package, module, name, node))
            case _:
                raise Undocumented(f"{module.name} has {name!r} in its __all__ and does not define it.")
    return "\n\n".join(parts)


def breakable(name: str) -> str:
    """The name of a module with places behind its dots where a narrow screen may break the line."""
    return name.replace(".", ".\u200b")


def overview(package: Package, modules: list[Module]) -> str:
    """A table of modules with the first paragraph of each."""
    rows = ["| Module | What it is |", "| --- | --- |"]
    for module in modules:
        first = markdown(module.docstring.partition("\n\n")[0], partial(package.find, module=module))
        link = f"{{py:obj}}`{breakable(module.name.removeprefix(f'{package.name}.'))} <{module.name}>`"
        rows.append(f"| {link} | {' '.join(first.split()).replace('|', chr(92) + '|')} |")
    return "\n".join(rows)


# ---- how it gets into the page


class ApiReference(SphinxDirective):
    """`{api-reference} package`: the table and the sections."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """All of it; the page is read again when a module changes."""
        package = Package(self.arguments[0])
        self.env.metadata[self.env.docname][FOLDED] = "true"
        for module in (package.front, *package.modules.values()):
            self.env.note_dependency(str(module.path))
        front = [module for module in package.modules.values() if package.is_in_front(module)]
        behind = [module for module in package.modules.values() if not package.is_in_front(module)]
        tables = [overview(package, front), "The rest has to be imported from its module:", overview(package, behind)]
        found = nodes.Element()
        self.parse("\n\n".join(tables), found)
        for module in front + behind:
            heading = nodes.title("", "", nodes.literal("", breakable(module.name)))
            section = nodes.section("", heading, ids=[nodes.make_id(module.name)], names=[module.name])
            self.parse(module_text(package, module), section)
            for line in list(section.findall(addnodes.desc_signature)):
                tidy(line, package, module)
            found += section
        return found.children

    def parse(self, text: str, parent: nodes.Element) -> None:
        """Append what the book's Markdown makes of a text."""
        self.state.nested_parse(StringList(text.splitlines(), "docstrings"), 0, parent)


def tidy(heading: Any, package: Package, module: Module) -> None:
    """Link the types in a signature that have an entry, and no others; say how to call it; quote as the code does."""
    for reference in list(heading.findall(addnodes.pending_xref)):
        if target := package.find(reference["reftarget"], module):
            reference.update_all_atts({"reftype": "obj", "reftarget": target}, replace=True)
        else:
            reference.replace_self(reference.children)
    for value in heading.findall(nodes.inline):
        if len(value) == 1 and isinstance(value[0], nodes.Text) and '"' not in value.astext():
            value[0] = nodes.Text(value.astext().replace("'", '"'))
    if not heading["class"] and isinstance(name := heading.next_node(addnodes.desc_name), addnodes.desc_name):
        prefix = package.call(module, name.astext()).removesuffix(name.astext())
        name.parent.insert(name.parent.index(name), addnodes.desc_addname(prefix, prefix))


def fold_contents(app: Sphinx, page: str, template: str, context: dict[str, Any], doctree: Any) -> None:
    """Beside the page, list the names of the module that is being read and of no other."""
    if FOLDED in (context.get("meta") or {}):
        context["theme_show_toc_level"] = 1


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.connect("html-page-context", fold_contents)
    app.add_directive("api-reference", ApiReference)
    return {"version": "1", "parallel_read_safe": True, "parallel_write_safe": True}
