"""Text is UTF-8 wherever this runs, whatever the system's locale says."""

import ast
import io
import locale

import pytest

import command_line
from decoupled.training.html import page
from decoupled.training.workdir import write_whole
from tests.commands import ROOT

SOURCES = [
    *ROOT.glob("*.py"),
    *(path for path in ROOT.glob("[a-z]*/**/*.py") if "shared" not in path.parts),
]
# They open what is not text, or have no encoding to choose.
_OTHER_OPENS = {"os", "tarfile", "zipfile", "webbrowser"}


def unsaid(tree):
    """Lines where text is read or written, and its encoding left to the locale."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(k.arg == "encoding" for k in node.keywords):
            continue
        called = node.func
        name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
        owner = ast.unparse(called.value) if isinstance(called, ast.Attribute) else ""
        words = [*node.args, *(k.value for k in node.keywords if k.arg == "mode")]
        mode = "".join(w.value for w in words if isinstance(w, ast.Constant) and isinstance(w.value, str))
        said_text = {k.arg for k in node.keywords if ast.unparse(k.value) == "True"}
        if (
            name in ("read_text", "write_text", "TextIOWrapper")
            or (
                name in ("open", "fdopen", "NamedTemporaryFile")
                and owner not in _OTHER_OPENS
                and "b" not in mode
            )
            or said_text & {"text", "universal_newlines"}
        ):
            yield node.lineno


@pytest.mark.parametrize(
    "source",
    [
        "open(path)",
        "open(path, 'w')",
        "path.open(mode='a')",
        "path.read_text()",
        "path.write_text(text)",
        "subprocess.run(command, text=True)",
        "io.TextIOWrapper(stream)",
    ],
)
def test_the_scan_sees(source):
    assert list(unsaid(ast.parse(source)))


def test_every_text_file_has_its_encoding_said():
    assert len(SOURCES) > 200
    found = {
        f"{path.relative_to(ROOT)}:{line}"
        for path in SOURCES
        for line in unsaid(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == set()


@pytest.fixture
def ascii_locale():
    """As under LC_ALL=C, where Python is not told to use UTF-8 all the same."""
    before = locale.setlocale(locale.LC_CTYPE)
    locale.setlocale(locale.LC_CTYPE, "C")
    yield
    locale.setlocale(locale.LC_CTYPE, before)


def test_pages_are_utf_8_in_any_locale(tmp_path, ascii_locale):
    path = tmp_path / "report.html"
    write_whole(path, page("R² and λ", "76.2 ± 0.3 %"))
    assert "76.2 ± 0.3 %".encode() in path.read_bytes()


def test_a_terminal_that_lacks_a_letter_shows_its_code(monkeypatch):
    terminal = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", terminal)
    command_line.print_whatever_the_terminal()
    print("BP(λ): 76.2 ± 0.3 %", flush=True)
    assert terminal.buffer.getvalue() == rb"BP(\u03bb): 76.2 \xb1 0.3 %" + b"\n"
