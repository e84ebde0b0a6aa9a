"""Which source files a module uses, by reading them: nothing is imported or run.

Every import at the top of a module counts, since it is executed. An import inside a function
counts only if the function can be called: if its name is mentioned in code that counts, for a
method also as an attribute or a string given to `getattr`. So a method that a stage never calls
does not tie the stage to what the method imports; two functions of one name are both taken as
called, which errs on the safe side. `from package import name` is followed through lazy packages (a
`__getattr__` beside `if TYPE_CHECKING:` imports) to the module that defines the name.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from llm_trainer.exceptions import LLMTrainerError

FIRST_PARTY = ("llm_trainer", "pipeline")

Function = ast.FunctionDef | ast.AsyncFunctionDef


class UnresolvedImportError(LLMTrainerError):
    """An import of our own packages that leads nowhere, or nowhere that reading can tell."""


@dataclass
class _Code:
    """What one piece of code (a module's top level, or a function) mentions and imports."""

    names: set[str] = field(default_factory=set)
    """Names, and attributes of imported modules: what a function is called by."""
    attributes: set[str] = field(default_factory=set)
    """Attributes of anything: what a method is called by."""
    imports: list[ast.Import | ast.ImportFrom] = field(default_factory=list)


@dataclass
class _Function:
    name: str
    is_method: bool
    code: _Code


@dataclass
class _Module:
    name: str
    path: Path
    top: _Code
    functions: list[_Function]
    exports: dict[str, str]
    """Name -> module that defines it, of a lazy package."""
    bound: set[str]
    """Names that the top level defines or imports."""

    @property
    def is_package(self) -> bool:
        return self.path.name == "__init__.py"


class ImportGraph:
    """The modules under `root`, parsed on demand."""

    def __init__(self, root: Path = Path()) -> None:
        self.root = root
        self._modules: dict[str, _Module] = {}

    def find(self, name: str) -> Path | None:
        """The file of a module of ours, relative to the root; None if there is none."""
        if name.partition(".")[0] not in FIRST_PARTY:
            return None
        base = Path(*name.split("."))
        for path in (base.with_suffix(".py"), base / "__init__.py"):
            if (self.root / path).is_file():
                return path
        return None

    def used_by(self, start: str, excluded: frozenset[str] = frozenset()) -> set[str]:
        """Names of all modules of ours that running the module `start` uses, itself included.

        Modules in `excluded`, or inside a package in it, are neither listed nor followed.

        Raises:
            UnresolvedImportError: an import that does not lead to a file.
        """
        used: set[str] = set()
        names: set[str] = set()
        attributes: set[str] = set()
        uncalled: dict[str, list[tuple[_Module, _Function]]] = defaultdict(list)
        todo: list[tuple[_Module, _Code]] = []

        def can_be_called(function: _Function) -> bool:
            name = function.name
            special = name.startswith("__") and name != "__getattr__"
            return special or name in names or (function.is_method and name in attributes)

        def sort(module: _Module, function: _Function) -> None:
            if can_be_called(function):
                todo.append((module, function.code))
            else:
                uncalled[function.name].append((module, function))

        def enter(name: str) -> None:
            if name in used or any(name == e or name.startswith(f"{e}.") for e in excluded):
                return
            used.add(name)
            module = self._load(name)
            todo.append((module, module.top))
            for function in module.functions:
                sort(module, function)

        enter(start)
        while todo:
            module, code = todo.pop()
            fresh = (code.names - names) | (code.attributes - attributes)
            names |= code.names
            attributes |= code.attributes
            for name in fresh:
                for entry in uncalled.pop(name, []):
                    sort(*entry)
            for statement in code.imports:
                for target in self._targets(module, statement):
                    enter(target)
        return used

    def edges(self, name: str) -> set[str]:
        """Modules of ours that a module imports anywhere, function-level imports included."""
        module = self._load(name)
        codes = [module.top, *(function.code for function in module.functions)]
        return set(self._imported(module, codes)) - {name}

    def top_edges(self, name: str) -> set[str]:
        """Modules of ours that are loaded when the module is."""
        module = self._load(name)
        return set(self._imported(module, [module.top])) - {name}

    def _imported(self, module: _Module, codes: list[_Code]) -> Iterator[str]:
        for code in codes:
            for statement in code.imports:
                yield from self._targets(module, statement)

    def _load(self, name: str) -> _Module:
        if name not in self._modules:
            path = self.find(name)
            if path is None:
                raise UnresolvedImportError(f"no module '{name}'")
            tree = ast.parse((self.root / path).read_bytes(), filename=str(path))
            self._modules[name] = _read(name, path, tree)
        return self._modules[name]

    def _targets(self, module: _Module, statement: ast.Import | ast.ImportFrom) -> Iterator[str]:
        if isinstance(statement, ast.Import):
            for alias in statement.names:
                if self.find(alias.name) is not None:
                    yield from _with_parents(alias.name)
            return
        assert statement.level == 0, f"{module.path}:{statement.lineno}: imports are absolute here"
        source = statement.module or ""
        if source.partition(".")[0] not in FIRST_PARTY:
            return
        yield from _with_parents(source)
        package = self._load(source)
        for alias in statement.names:
            target = self._home(package, alias.name)
            if target is None:
                raise UnresolvedImportError(
                    f"{module.path}:{statement.lineno}: cannot tell where {source}.{alias.name} is "
                    f"defined; list it in the package's `if TYPE_CHECKING:` imports"
                )
            yield from _with_parents(target)

    def _home(self, package: _Module, name: str) -> str | None:
        if not package.is_package or name in package.bound:
            return package.name  # what the top level imports is followed on its own
        submodule = f"{package.name}.{name}"
        if self.find(submodule) is not None:
            return submodule
        return package.exports.get(name)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    for count in range(1, len(parts) + 1):
        yield ".".join(parts[:count])


def _read(name: str, path: Path, tree: ast.Module) -> _Module:
    reader = _Reader(tree)
    reader.collect(tree.body, reader.top, in_class=False)
    bound: set[str] = set()
    for statement in tree.body:
        if isinstance(statement, ast.Import | ast.ImportFrom):
            bound |= {(a.asname or a.name).partition(".")[0] for a in statement.names}
        elif isinstance(statement, Function | ast.ClassDef):
            bound.add(statement.name)
        elif isinstance(statement, ast.Assign | ast.AnnAssign):
            targets = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
            bound |= {t.id for t in targets if isinstance(t, ast.Name)}
    return _Module(name, path, reader.top, reader.functions, reader.exports, bound)


class _Reader:
    """Sorts the code of one module into its top level and its functions."""

    def __init__(self, tree: ast.Module) -> None:
        self.top = _Code()
        self.functions: list[_Function] = []
        self.exports: dict[str, str] = {}
        self._imported = {
            (alias.asname or alias.name).partition(".")[0]
            for node in ast.walk(tree)
            if isinstance(node, ast.Import | ast.ImportFrom)
            for alias in node.names
        }

    def collect(self, body: list[ast.stmt], code: _Code, *, in_class: bool) -> None:
        """Sort statements of the module or of a class; those outside functions go to `code`."""
        for statement in body:
            if isinstance(statement, ast.If) and _is_type_checking(statement.test):
                for item in statement.body:
                    if isinstance(item, ast.ImportFrom) and item.module:
                        self.exports.update({a.asname or a.name: item.module for a in item.names})
                self.collect(statement.orelse, code, in_class=in_class)
            elif isinstance(statement, Function):
                own = _Code()
                for item in statement.body:
                    self._scan(item, own)
                self.functions.append(_Function(statement.name, in_class, own))
                for expression in (*statement.decorator_list, statement.args):
                    self._scan(expression, code)
            elif isinstance(statement, ast.ClassDef):
                for expression in (
                    *statement.decorator_list, *statement.bases, *statement.keywords,
                ):  # fmt: skip
                    self._scan(expression, code)
                self.collect(statement.body, code, in_class=True)
            elif not _is_all(statement):
                self._scan(statement, code)

    def _scan(self, node: ast.AST, code: _Code) -> None:
        for item in _walk(node):
            if isinstance(item, ast.Name):
                code.names.add(item.id)
            elif isinstance(item, ast.Attribute):
                code.attributes.add(item.attr)
                if _root(item) in self._imported:
                    code.names.add(item.attr)
            elif isinstance(item, ast.Import | ast.ImportFrom):
                code.imports.append(item)
                # under another name, its own may never be mentioned again
                code.names.update(alias.name for alias in item.names if alias.asname)
            elif isinstance(item, ast.Call) and _takes_names(item.func):
                code.names.update(
                    argument.value
                    for argument in item.args
                    if isinstance(argument, ast.Constant) and isinstance(argument.value, str)
                )


def _root(node: ast.expr) -> str:
    """The name that a chain of attributes begins with; empty if it begins otherwise."""
    while isinstance(node, ast.Attribute):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def _takes_names(function: ast.expr) -> bool:
    names = ("getattr", "attrgetter", "methodcaller")
    return isinstance(function, ast.Name) and function.id in names


def _walk(node: ast.AST) -> Iterator[ast.AST]:
    if isinstance(node, ast.If) and _is_type_checking(node.test):
        return
    yield node
    for child in ast.iter_child_nodes(node):
        yield from _walk(child)


def _is_type_checking(test: ast.expr) -> bool:
    return isinstance(test, ast.Name) and test.id == "TYPE_CHECKING"


def _is_all(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Assign)
        and isinstance(statement.targets[0], ast.Name)
        and statement.targets[0].id == "__all__"
    )
