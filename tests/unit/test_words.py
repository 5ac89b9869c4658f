"""Rules on words that a machine can hold: docstrings of the library, their first words and fields, and names."""

import ast
import inspect
import re
from pathlib import Path

import pytest

import rdi

ROOT = Path(rdi.__file__).parent
# the docstrings of the command line are for those who work on it
LIBRARY = sorted(path for path in ROOT.rglob("*.py") if path.relative_to(ROOT).parts[0] != "cli")
OPENINGS = re.compile(r"(What|Whether|Where|How|Which|When|Of|The same|As|See)\b")
# a function does something: its first word is a verb, neither in the third person nor a noun with its article
NOT_IMPERATIVE = re.compile(
    r"([^A-Z]|(The|A|An|All|Any|Every|Each|One|No|Names|Name (of|and|->)|Number|Headers?)\b|\w+[^s\W]s\b)"
)
PRIVATE = {
    "album",
    "anew",
    "anybody",
    "bout",
    "bouts",
    "came",
    "catch",
    "caught",
    "chance",
    "doubt",
    "everybody",
    "haste",
}
PRIVATE |= {"look", "looked", "looks", "nobody", "shot", "shots", "slashed", "somebody", "sure", "told", "way", "ways"}
"""Words that say nothing to a reader from the field; no name has one of them as a part."""
PERSISTED = {"sure"}
"""A setting of attacks, by which stored banks are known."""
PAGES = re.compile(r"(PAPER|PEERS|FIELD|RECIPES|DESIGN|REDESIGN|ECOSYSTEM|STYLE)\.md")


def relative(path):
    return path.relative_to(ROOT).as_posix()


def public(body, prefix=""):
    """(dotted name, node) of every class, function and method that is not private."""
    for node in body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                yield from public(node.body, f"{prefix}{node.name}.")


def docstrings(tree):
    """(name, text) for the module, for everything public, and for strings below assignments."""
    yield "the module", ast.get_docstring(tree) or ""
    for name, node in public(tree.body):
        yield name, ast.get_docstring(node) or ""
    for before, after in zip(tree.body, tree.body[1:], strict=False):
        if isinstance(before, ast.Assign | ast.AnnAssign) and isinstance(after, ast.Expr):
            yield ast.unparse(before).split(" = ")[0], ast.literal_eval(after.value)


def bound_names(tree):
    """Names that a module gives to classes, functions, arguments, variables and attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ClassDef | ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.arg):
            yield node.arg
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield node.attr


@pytest.mark.parametrize("path", LIBRARY, ids=relative)
def test_words(path):
    text = path.read_text()
    tree = ast.parse(text)
    found = dict(docstrings(tree))
    assert [name for name, doc in found.items() if not doc] == [], "no docstring"
    assert [f"{name}: {doc[:60]}" for name, doc in found.items() if OPENINGS.match(doc)] == [], "an opening"
    functions = [
        name
        for name, node in public(tree.body)
        if isinstance(node, ast.FunctionDef) and not any("property" in ast.unparse(one) for one in node.decorator_list)
    ]
    no_verb = [f"{name}: {found[name][:60]}" for name in functions if NOT_IMPERATIVE.match(found[name])]
    assert no_verb == []
    private = {name for name in bound_names(tree) if PRIVATE & set(name.lower().split("_"))} - PERSISTED
    assert private == set(), "private vocabulary"
    assert PAGES.findall(text) == [], "pages that are not in the repository"


def exported():
    """(name, value) of what rdi exports, and of what its modules do."""
    for name in rdi.__all__:
        value = getattr(rdi, name)
        if inspect.ismodule(value):
            yield from ((f"{name}.{inner}", getattr(value, inner)) for inner in value.__all__)
        else:
            yield name, value


def undocumented(value):
    """Parameters that no docstring names at the beginning of a line; those of a base class count."""
    if getattr(value, "_is_protocol", False) or value is rdi.UserError:
        return []
    classes = inspect.getmro(value) if inspect.isclass(value) else [value]
    text = "\n".join(inspect.getdoc(one) or "" for one in classes if one.__module__.startswith("rdi"))
    named = {name for line in re.findall(r"(?m)^`?([\w`]+(?:, [\w`]+)*): ", text) for name in re.findall(r"\w+", line)}
    kinds = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    return [
        name for name, one in inspect.signature(value).parameters.items() if one.kind not in kinds and name not in named
    ]


def test_every_argument_of_what_is_exported_has_a_line():
    callables = {name: value for name, value in exported() if inspect.isclass(value) or inspect.isfunction(value)}
    assert len(callables) > 100
    found = {name: missing for name, value in callables.items() if (missing := undocumented(value))}
    assert found == {}
