"""Every error that the source can raise, read from the source: it cannot be out of date.

The syntax trees of all packages are searched for ``XError(message, hint=…)``. A function that only
wraps one (``_refuse("…")``) counts where it is called. What is known only when it happens is shown
as a variable.
"""

from __future__ import annotations

import ast
import html
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from omnipersona_cli import errors as tree
from omnipersona_cli.errors import PersonaError

ROOT = Path(__file__).parent.parent.parent
PLACES = ("omnipersona_cli", "backends", "plugins")
CLASSES = {
    name: value
    for name, value in vars(tree).items()
    if inspect.isclass(value) and issubclass(value, PersonaError)
}


@dataclass(frozen=True, kw_only=True)
class Said:
    """One error of the source: its class, message and hint as HTML, and the module."""

    error: str
    message: str
    hint: str
    module: str
    line: int


@dataclass(frozen=True, kw_only=True)
class _Wrapper:
    """A function that raises ``error`` with one of its own parameters in it."""

    error: str
    parameters: tuple[str, ...]
    message: ast.expr
    hint: ast.expr | None
    constants: Mapping[str, ast.expr] = field(default_factory=dict)


def exit_codes() -> str:
    """The tree of errors with its exit codes."""
    lines = ["| exit code | error | |", "| --- | --- | --- |", "| 0 | | done |"]
    for name, error in sorted(CLASSES.items(), key=lambda item: item[1].exit_code):
        meaning = " ".join((error.__doc__ or "").split())
        lines.append(f"| {error.exit_code} | [`{name}`](#{name.lower()}) | {meaning} |")
    lines.append("| 130 | | interrupted (Ctrl-C) |")
    return "\n".join(lines)


def errors() -> str:
    """All errors by class."""
    found = list(collect())
    lines: list[str] = []
    for name, error in CLASSES.items():
        mine = [said for said in found if said.error == name]
        if not mine:
            continue
        lines += [
            f"## {name}",
            "",
            f"{' '.join((error.__doc__ or '').split())} Exit code {error.exit_code}.",
            "",
            "| what is said | hint | from |",
            "| --- | --- | --- |",
        ]
        seen = set()
        for said in mine:
            row = f"| {said.message} | {said.hint} | `{said.module}` |"
            if row not in seen:
                lines.append(row)
            seen.add(row)
        lines.append("")
    return "\n".join(lines)


def collect() -> Iterator[Said]:
    """Every error, in the order of modules and lines."""
    modules = {
        _module(path): ast.parse(path.read_text(encoding="utf-8"))
        for place in PLACES
        for path in sorted((ROOT / place).rglob("*.py"))
    }
    constants = {name: _constants(module) for name, module in modules.items()}
    wrappers = {
        (name, function.name): wrapper
        for name, module in modules.items()
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef)
        and (wrapper := _wrapper(function, constants[name])) is not None
    }
    for name, module in modules.items():
        known = dict(constants[name])
        reachable = {key[1]: value for key, value in wrappers.items() if key[0] == name}
        for node in module.body:
            if isinstance(node, ast.ImportFrom) and node.module in modules:
                for alias in node.names:
                    called = alias.asname or alias.name
                    if alias.name in constants[node.module]:
                        known[called] = constants[node.module][alias.name]
                    if (node.module, alias.name) in wrappers:
                        reachable[called] = wrappers[node.module, alias.name]
        yield from _in_module(name, module, known, reachable)


def _in_module(
    name: str,
    module: ast.Module,
    constants: Mapping[str, ast.expr],
    wrappers: Mapping[str, _Wrapper],
) -> Iterator[Said]:
    inside = {
        id(call)
        for function in ast.walk(module)
        if isinstance(function, ast.FunctionDef) and _wrapper(function, constants) is not None
        for call in _errors_in(function)
    }
    for node in ast.walk(module):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name):
            continue
        if node.func.id in CLASSES and id(node) not in inside and node.args:
            hint = next((word.value for word in node.keywords if word.arg == "hint"), None)
            yield Said(
                error=node.func.id,
                message=_text(node.args[0], constants),
                hint="" if hint is None else _text(hint, constants),
                module=name,
                line=node.lineno,
            )
        elif (wrapper := wrappers.get(node.func.id)) is not None:
            given = dict(zip(wrapper.parameters, node.args, strict=False))
            given |= {word.arg: word.value for word in node.keywords if word.arg}
            bound = {**wrapper.constants, **constants, **given}
            yield Said(
                error=wrapper.error,
                message=_text(wrapper.message, bound),
                hint="" if wrapper.hint is None else _text(wrapper.hint, bound),
                module=name,
                line=node.lineno,
            )


def _wrapper(function: ast.FunctionDef, constants: Mapping[str, ast.expr]) -> _Wrapper | None:
    """The wrapper that a function is: short, with one error whose message is a parameter."""
    made = list(_errors_in(function))
    if len(made) != 1:
        return None
    (call,) = made
    parameters = tuple(arg.arg for arg in (*function.args.args, *function.args.kwonlyargs))
    names = [node.id for node in ast.walk(call.args[0]) if isinstance(node, ast.Name)]
    if not isinstance(call.args[0], ast.Name) or names[0] not in parameters:
        return None
    assert isinstance(call.func, ast.Name)
    hint = next((word.value for word in call.keywords if word.arg == "hint"), None)
    return _Wrapper(
        error=call.func.id,
        parameters=parameters,
        message=call.args[0],
        hint=hint,
        constants=constants,
    )


def _errors_in(function: ast.AST) -> Iterator[ast.Call]:
    for node in ast.walk(function):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in CLASSES
            and node.args
        ):
            yield node


def _constants(module: ast.Module) -> dict[str, ast.expr]:
    found: dict[str, ast.expr] = {}
    for node in module.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            if isinstance(node.value, ast.Constant | ast.JoinedStr | ast.BinOp):
                found[node.targets[0].id] = node.value
    return found


def _text(expression: ast.expr, known: Mapping[str, ast.expr]) -> str:
    """An expression that is a text, as HTML for a cell of a table."""
    match expression:
        case ast.Constant(value=str() as text):
            return _escape(text)
        case ast.Constant(value=value):
            return _escape(str(value))
        case ast.JoinedStr(values=parts):
            return "".join(_text(part, known) for part in parts)
        case ast.FormattedValue(value=inner):
            return _text(inner, known)
        case ast.BinOp(left=left, op=ast.Add(), right=right) if _is_text(right):
            return _text(left, known) + _text(right, known)
        case ast.IfExp(body=body, orelse=other):
            choices = [text for text in (_text(body, known), _text(other, known)) if text]
            return " <em>or</em> ".join(dict.fromkeys(choices))
        case ast.Name(id=name) if name in known:
            rest = {key: value for key, value in known.items() if key != name}
            return _text(known[name], rest)
        case _:
            return f"<var>{_escape(_named(expression))}</var>"


def _is_text(expression: ast.expr) -> bool:
    return not isinstance(expression, ast.Constant) or isinstance(expression.value, str)


def _named(expression: ast.expr) -> str:
    """What a value is called, from the code that gives it."""
    match expression:
        case ast.Name(id=name):
            return name.strip("_").lower().replace("_", " ")
        case ast.Attribute(attr=name):
            return name.strip("_").replace("_", " ")
        case ast.Subscript(value=inner):
            return _named(inner)
        case ast.Call(func=ast.Attribute(attr="join"), args=[first, *_]):
            return _named(first)
        case ast.Call(func=ast.Name(id="str" | "len" | "repr" | "sorted" | "map"), args=[*_, last]):
            return _named(last)
        case ast.Call(func=ast.Attribute(value=inner)):
            return _named(inner)
        case ast.BinOp(left=left):
            return _named(left)
        case ast.BoolOp(values=[first, *_]):
            return _named(first)
        case ast.GeneratorExp(generators=[first, *_]) | ast.ListComp(generators=[first, *_]):
            return _named(first.iter)
        case _:
            return "…"


def _escape(text: str) -> str:
    parts = html.escape(text, quote=False).replace("|", "&#124;").replace("\n", " ").split("`")
    for index, part in enumerate(parts):
        escaped = part.replace("*", "&#42;").replace("_", "&#95;")
        parts[index] = f"<code>{escaped}</code>" if index % 2 and len(parts) % 2 else escaped
    return "".join(parts)


def _module(path: Path) -> str:
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    if parts[0] in ("backends", "plugins"):
        parts = parts[1:]
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
