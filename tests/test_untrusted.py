"""Nothing that is read is ever run: no pickle, eval or the like in the package and its programs."""

import ast

import pytest

from tests.commands import ROOT

SOURCES = [*ROOT.glob("*.py"), *(p for d in ("decoupled", "configs") for p in (ROOT / d).rglob("*.py"))]
# What processes of one run say to one another over their own pipes; never from a file.
BETWEEN_PROCESSES = {
    "decoupled/asynchronous/messages.py": {"pickle"},
    "decoupled/asynchronous/program.py": {"pickle"},
    "decoupled/data/stream.py": {"cloudpickle"},  # whether grain can send the user's own object
}
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "torch", "yaml"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"extractall", "extract", "load_pickle", "read_pickle", "unsafe_load"}


def forbidden(tree):
    """What a file must not contain, with its line."""
    for node in ast.walk(tree):
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        yield from ((node.lineno, name) for name in names if name.partition(".")[0] in MODULES)
        if not isinstance(node, ast.Call):
            continue
        called, numpy_load = node.func, False
        if isinstance(called, ast.Name) and called.id in BUILTINS:
            yield node.lineno, called.id
        if isinstance(called, ast.Attribute):
            numpy_load = called.attr == "load" and ast.unparse(called.value) in ("np", "numpy", "jnp")
            if called.attr in METHODS:
                yield node.lineno, called.attr
        # np.load is safe with nothing said, and refuses pickles; it must not be told otherwise.
        pickles = [k for k in node.keywords if k.arg == "allow_pickle" and ast.unparse(k.value) != "False"]
        if pickles or (numpy_load and any(keyword.arg is None for keyword in node.keywords)):
            yield node.lineno, "allow_pickle"


@pytest.mark.parametrize(
    "source",
    [
        "import pickle",
        "from torch import load",
        "import yaml.loader",
        "eval('1')",
        "exec(text)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, **options)",
        "archive.extractall()",
    ],
)
def test_the_scan_sees(source):
    assert list(forbidden(ast.parse(source)))


def test_no_code_comes_from_data():
    assert len(SOURCES) > 50
    for path in SOURCES:
        allowed = BETWEEN_PROCESSES.get(path.relative_to(ROOT).as_posix(), set())
        found = {name for _, name in forbidden(ast.parse(path.read_text(encoding="utf-8")))}
        assert found == allowed, path
