"""Finds the exceptions that public services raise, and compares them with the `Raises:` lines of their docstrings.

The analysis follows every `raise` statement through the calls between our own functions, up to the handlers that catch it. It
takes the class of a variable from annotations, constructors and foreign keys, and ignores all other calls. Built-in exceptions
are optional in a docstring, because some report programming errors, and the analysis does not see those that libraries raise.
Public functions need the line. Methods are checked only if they have it.

    .venv/bin/python -m tests.meta.raises           prints the differences
    .venv/bin/python -m tests.meta.raises --write   corrects the docstrings
"""

import ast
import builtins
import inspect
import os
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache, cached_property
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import django
from django.db.transaction import TransactionManagementError


ROOT = Path(__file__).resolve().parents[2]
WIDTH = 130
PACKAGES = ("vault", "tenants", "files", "egress", "purge")
# Modules without services: they call services, describe rows or requests, implement a protocol, or Django runs them.
NO_SERVICES = re.compile(
    r"\.(admin|admin_site|apps|checks|filters|models|permissions|serializers|tasks|triggers|urls|views)$"
    r"|_(views|serializers)$|\.(views|http|migrations|management|stores)\b"
)
RAISES = re.compile(r"\n*^[ \t]*Raises: (?P<names>[\w, \n]+)\.[ \t]*$", re.MULTILINE)

THROUGH_DJANGO = {"HashingFull", "TooManyAttempts"}  # optional too: password hashers and authentication backends raise them

Exceptions = frozenset[type[BaseException]]
NONE: Exceptions = frozenset()


@dataclass
class Scope:
    """The classes of the names in a function, and the exceptions that a bare `raise` raises in a handler."""

    module: types.ModuleType
    classes: dict[str, Any] = field(default_factory=dict)  # annotations of variables
    caught: Exceptions = NONE
    caught_as: dict[str, Exceptions] = field(default_factory=dict)
    yields: Exceptions = NONE  # of the body of a `with` whose context manager is this generator


class Code:
    """The functions of a set of modules, and the exceptions that they raise."""

    def __init__(self, modules: list[types.ModuleType]) -> None:
        self.modules = {module.__name__: module for module in modules}
        self._trees = {name: ast.parse(Path(module.__file__ or "").read_text()) for name, module in self.modules.items()}
        self._nodes = {
            (name, qualified): node for name, tree in self._trees.items() for qualified, node in named_functions(tree.body)
        }
        self._found: dict[tuple[str, str], Exceptions] = {}
        self._changed = True

    def functions(self) -> Iterator[Callable[..., Any]]:
        """Returns the public functions and the public methods of public classes that these modules define."""
        for name, qualified in self._nodes:
            if not any(part.startswith("_") for part in qualified.split(".")):
                yield lookup(self.modules[name], qualified)

    def raised(self, function: Callable[..., Any]) -> Exceptions:
        """Returns every exception class that the function can raise. Follows recursive calls until it finds no new class."""
        key = self._key(function)
        if key is None:
            return NONE
        while self._changed:
            self._changed = False
            for other in self._nodes:
                found = self._analyse(other)
                if found != self._found.get(other, NONE):
                    self._found[other] = found
                    self._changed = True
        return self._found.get(key, NONE)

    def node(self, function: Callable[..., Any]) -> ast.FunctionDef:
        key = self._key(function)
        assert key, f"{function} is not a function of these modules"
        return self._nodes[key]

    def _key(self, function: Any) -> tuple[str, str] | None:
        function = inspect.unwrap(function) if callable(function) else function
        key = (getattr(function, "__module__", ""), getattr(function, "__qualname__", ""))
        return key if key in self._nodes else None

    def _analyse(self, key: tuple[str, str], yields: Exceptions = NONE) -> Exceptions:
        module, node = self.modules[key[0]], self._nodes[key]
        scope = Scope(module, yields=yields)
        function = lookup(module, key[1])
        scope.classes.update(hints(inspect.unwrap(function) if callable(function) else function))
        owner = key[1].rpartition(".")[0]
        if owner and node.args.args:
            scope.classes[node.args.args[0].arg] = lookup(module, owner)
        return self._body(node.body, scope)

    # --- Statements ---

    def _body(self, body: list[ast.stmt], scope: Scope) -> Exceptions:
        return NONE.union(*(self._statement(statement, scope) for statement in body))

    def _statement(self, node: ast.AST, scope: Scope) -> Exceptions:
        match node:
            case ast.Raise():
                return self._raise(node, scope)
            case ast.Try() | ast.TryStar():
                return self._try(node, scope)
            case ast.With():
                return self._with(node, scope)
            case ast.Assign(targets=[ast.Name(id=name)], value=value) | ast.NamedExpr(target=ast.Name(id=name), value=value):
                found = self._statement(value, scope)
                scope.classes[name] = self._class_of(value, scope)
                return found
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation):
                scope.classes[name] = evaluate(annotation, scope.module)
            case ast.For(target=ast.Name(id=name), iter=iterated) | ast.comprehension(target=ast.Name(id=name), iter=iterated):
                scope.classes[name] = item_of(self._class_of(iterated, scope))
            case ast.Call():
                return self._call(node, scope)
            case ast.Attribute():
                return self._statement(node.value, scope) | self._getter(node, scope)
            case ast.Yield() | ast.YieldFrom():
                return self._children(node, scope) | scope.yields
            case ast.ListComp() | ast.SetComp() | ast.GeneratorExp() | ast.DictComp():
                # The variables first
                loops = NONE.union(*(self._statement(loop, scope) for loop in node.generators))
                return loops | self._children(node, scope)
        return self._children(node, scope)

    def _children(self, node: ast.AST, scope: Scope) -> Exceptions:
        return NONE.union(*(self._statement(child, scope) for child in ast.iter_child_nodes(node)))

    def _raise(self, node: ast.Raise, scope: Scope) -> Exceptions:
        if node.exc is None:
            return scope.caught
        if isinstance(node.exc, ast.Name) and node.exc.id in scope.caught_as:
            return scope.caught_as[node.exc.id]
        cls = self._class_of(node.exc, scope) or self._resolve(node.exc, scope)
        raised = frozenset({cls}) if isinstance(cls, type) and issubclass(cls, BaseException) else NONE
        return raised | self._statement(node.exc, scope)

    def _try(self, node: ast.Try | ast.TryStar, scope: Scope) -> Exceptions:
        remaining, found = self._body(node.body, scope), NONE
        outer = scope.caught
        for handler in node.handlers:
            handled = self._handled(handler, scope)
            scope.caught = frozenset(error for error in remaining if issubclass(error, handled))
            remaining -= scope.caught
            if handler.name:
                scope.caught_as[handler.name] = scope.caught
            found |= self._body(handler.body, scope)
        scope.caught = outer
        return remaining | found | self._body(node.orelse, scope) | self._body(node.finalbody, scope)

    def _handled(self, handler: ast.ExceptHandler, scope: Scope) -> tuple[type[BaseException], ...]:
        if handler.type is None:
            return (BaseException,)
        named = self._resolve(handler.type, scope)
        classes = named if isinstance(named, tuple) else (named,)
        if isinstance(handler.type, ast.Tuple):
            classes = tuple(self._resolve(element, scope) for element in handler.type.elts)
        return tuple(cls for cls in classes if isinstance(cls, type))

    def _with(self, node: ast.With, scope: Scope) -> Exceptions:
        found = NONE
        for item in node.items:
            found |= self._statement(item.context_expr, scope)
            if isinstance(item.optional_vars, ast.Name):
                scope.classes[item.optional_vars.id] = item_of(self._class_of(item.context_expr, scope))
        body = self._body(node.body, scope)
        for item in reversed(node.items):
            if not isinstance(item.context_expr, ast.Call):
                continue
            manager = self._resolve(item.context_expr.func, scope)
            if manager is suppress:
                suppressed = tuple(self._resolve(argument, scope) for argument in item.context_expr.args)
                body = frozenset(error for error in body if not issubclass(error, suppressed))
            elif (key := self._key(manager)) and inspect.isgeneratorfunction(inspect.unwrap(manager)):
                body = self._analyse(key, yields=body)
        return found | body

    def _call(self, node: ast.Call, scope: Scope) -> Exceptions:
        found = self._children(node, scope)
        called = self._resolve(node.func, scope)
        if isinstance(called, type):
            called = getattr(called, "__init__", None)
        return found | self._of(called)

    def _getter(self, node: ast.Attribute, scope: Scope) -> Exceptions:
        """Treats access to a property as a call."""
        attribute = inspect.getattr_static(self._class_of(node.value, scope), node.attr, None)
        if isinstance(attribute, property):
            return self._of(attribute.fget)
        return self._of(attribute.func) if isinstance(attribute, cached_property) else NONE

    def _of(self, called: Any) -> Exceptions:
        if called is None or (key := self._key(called)) is None:
            return NONE
        owner = lookup(self.modules[key[0]], key[1].rpartition(".")[0])
        if is_protocol(owner):
            return NONE.union(*(self._of(getattr(cls, called.__name__)) for cls in self._implementations(owner)))
        return self._found.get(key, NONE)

    def _implementations(self, protocol: type) -> Iterator[type]:
        members = {name for name in vars(protocol) if not name.startswith("_")}
        for module in self.modules.values():
            for cls in vars(module).values():
                is_own = isinstance(cls, type) and cls.__module__ == module.__name__ and not is_protocol(cls)
                if is_own and all(hasattr(cls, name) for name in members):
                    yield cls

    # --- Expressions ---

    def _resolve(self, node: ast.expr, scope: Scope) -> Any:
        """Returns the object that a name or an attribute refers to, or None if it is unknown."""
        match node:
            case ast.Name(id=name) if name not in scope.classes:
                return getattr(scope.module, name, getattr(builtins, name, None))
            case ast.Attribute(value=ast.Call(func=ast.Name(id="super")), attr=attr) if "self" in scope.classes:
                return next((vars(cls)[attr] for cls in scope.classes["self"].__mro__[1:] if attr in vars(cls)), None)
            case ast.Attribute(value=value, attr=attr):
                owner = self._class_of(value, scope) or self._resolve(value, scope)
                if type(owner).__module__ in self.modules:  # a constant of a module
                    owner = type(owner)
                return getattr(owner, attr, None) if isinstance(owner, (type, types.ModuleType)) else None
        return None

    def _class_of(self, node: ast.expr, scope: Scope) -> Any:
        """Returns the class (or annotation) of a value, or None if it is unknown."""
        match node:
            case ast.Name(id=name):
                return plain(scope.classes.get(name))
            case ast.Call(func=func):
                called = self._resolve(func, scope)
                if isinstance(called, type):
                    return called
                return plain(hints(called).get("return")) if callable(called) else None
            case ast.Attribute(value=value, attr=attr):
                return attribute_class(self._class_of(value, scope), attr)
            case ast.IfExp(body=body) | ast.BoolOp(values=[body, *_]) | ast.Await(value=body) | ast.NamedExpr(value=body):
                return self._class_of(body, scope)
        return None


def named_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    for node in body:
        if isinstance(node, ast.FunctionDef):
            yield prefix + node.name, node
        elif isinstance(node, ast.ClassDef):
            yield from named_functions(node.body, f"{prefix}{node.name}.")


def is_protocol(cls: Any) -> bool:
    return getattr(cls, "_is_protocol", False)  # typing.is_protocol has existed since Python 3.13


def lookup(module: types.ModuleType, qualified: str) -> Any:
    """Returns the function that a property, a class method or a decorator wraps."""
    found: Any = module
    for part in filter(None, qualified.split(".")):
        found = inspect.getattr_static(found, part, None)
        found = getattr(found, "fget", None) or getattr(found, "func", None) or getattr(found, "__func__", None) or found
    return found


@cache
def hints(function: Any) -> dict[str, Any]:
    try:
        return get_type_hints(function)
    except (AttributeError, NameError, TypeError):  # names that exist only for the type checker
        return {}


def evaluate(annotation: ast.expr, module: types.ModuleType) -> Any:
    try:
        return eval(ast.unparse(annotation), vars(module))  # noqa: S307  our own source
    except (NameError, TypeError):
        return None


def plain(annotation: Any) -> Any:
    """Returns `X` for `X | None`."""
    if get_origin(annotation) in (typing.Union, types.UnionType):
        classes = [cls for cls in get_args(annotation) if cls is not type(None)]
        return classes[0] if len(classes) == 1 else None
    return annotation


def item_of(annotation: Any) -> Any:
    """Returns `X` for `Iterator[X]`, `QuerySet[X]` and `list[X]`, and the class itself if it is a context manager."""
    arguments = get_args(annotation)
    return plain(arguments[0]) if arguments else annotation


def attribute_class(owner: Any, name: str) -> Any:
    """Returns the class of an attribute: from its annotation, its property, or the target of its foreign key."""
    if not isinstance(owner, type):
        return None
    attribute = inspect.getattr_static(owner, name, None)
    if related := getattr(getattr(attribute, "field", None), "related_model", None):
        return related
    getter = getattr(attribute, "fget", None) or getattr(attribute, "func", None)
    return plain(hints(getter).get("return") if getter else hints(owner).get(name))


# --- Docstrings ---


def documented(function: Callable[..., Any]) -> set[str]:
    """Returns the classes in the `Raises:` line."""
    match = RAISES.search(inspect.unwrap(function).__doc__ or "")
    return set(re.findall(r"\w+", match["names"])) if match else set()


def is_method(function: Callable[..., Any]) -> bool:
    return "." in function.__qualname__


def is_required(error: type[BaseException]) -> bool:
    # TransactionManagementError, like many built-in exceptions, reports a programming error.
    return error.__module__ != "builtins" and not issubclass(error, TransactionManagementError)


def differences(code: Code) -> dict[str, set[str]]:
    """Maps each public service with a wrong `Raises:` line to the classes that the line must list."""
    found = {}
    for function in code.functions():
        name = f"{function.__module__}.{function.__qualname__}"
        if NO_SERVICES.search(function.__module__) or (is_method(function) and not documented(function)):
            continue
        raised = {error.__name__ for error in code.raised(function) if is_required(error)}
        optional = {error for error in documented(function) if hasattr(builtins, error) or error in THROUGH_DJANGO}
        if documented(function) - optional != raised - optional:
            found[name] = raised | optional
    return found


def product() -> list[types.ModuleType]:
    """Imports and returns the modules of the product. Requires django.setup()."""
    paths = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py") if "migrations" not in path.parts)
    names = [".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__") for path in paths]
    return [import_module(name) for name in names]


def corrected(docstring: str, names: set[str], indent: str) -> str:
    """Returns the docstring, without its quotes, with a `Raises:` line that lists these classes."""
    text = RAISES.sub("", docstring).rstrip()
    if not names:
        return text if "\n" not in text else f"{text}\n{indent}"
    line = textwrap.fill(f"Raises: {', '.join(sorted(names))}.", WIDTH, initial_indent=indent, subsequent_indent=indent)
    return f"{text}\n\n{line}\n{indent}" if text else line.strip()


def write(code: Code) -> None:
    """Corrects the `Raises:` lines of all docstrings."""
    for name, names in reversed(differences(code).items()):  # from the end of each module, so that line numbers stay valid
        function = next(function for function in code.functions() if f"{function.__module__}.{function.__qualname__}" == name)
        path = Path(inspect.getsourcefile(inspect.unwrap(function)) or "")
        lines = path.read_text().splitlines(keepends=True)
        node = code.node(function)
        first, indent = node.body[0], " " * node.body[0].col_offset
        old = ast.get_docstring(node, clean=False)
        new = f'{indent}"""{corrected(old or "", names, indent)}"""\n'
        lines[first.lineno - 1 : first.end_lineno if old is not None else first.lineno - 1] = [new]
        path.write_text("".join(lines))


def main() -> int:
    os.environ.setdefault("DJANGO_SETTINGS_MODULE", "tests.settings")
    django.setup()
    code = Code(product())
    if sys.argv[1:] == ["--write"]:
        write(code)
        return 0
    found = differences(code)
    for name, names in found.items():
        print(f"{name}: Raises: {', '.join(sorted(names)) or 'nothing'}")  # noqa: T201  its output
    return bool(found)


if __name__ == "__main__":
    sys.exit(main())
