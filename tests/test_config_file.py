"""What --config may name, and the one line for everything else that it names."""

import json
import re
import sys

import pytest
from ml_collections import ConfigDict

import config_file
from configs import cifar, digits
from decoupled.training import Workdir
from decoupled.training.saved_config import read_config
from tests.commands import ROOT, run


def parse(path):
    return config_file._Parser().parse(str(path))


def told(path):
    with pytest.raises(config_file.BadConfigFile) as error:
        parse(path)
    message = str(error.value)
    assert "\n" not in message
    return message


@pytest.fixture
def written(tmp_path):
    def write(text, name="mine.py"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("rate = 1", "{} has no get_config(): write one, as configs/digits.py does"),
        ("get_config = 1", "{} has no get_config(): write one, as configs/digits.py does"),
        (
            "def get_config(): return {'epochs': 1}",
            "get_config() in {} returns a dict: let it return a ml_collections.ConfigDict, as configs/",
        ),
        ("def get_config(): pass", "get_config() in {} returns a NoneType: let it return"),
        (
            "from ml_collections import FrozenConfigDict as C\ndef get_config(): return C()",
            "get_config() in {} returns a FrozenConfigDict: let it return",
        ),
        ("def get_config():\n\n  return rate", "{}, line 3: NameError: name 'rate' is not defined"),
        ("def get_config(): return open('/nowhere')", "{}, line 1: FileNotFoundError: "),
        ("def get_config():\n  raise ValueError('two\\nlines')", "{}, line 2: ValueError: two lines"),
        ("def get_config():\n  return {}['a']", "{}, line 2: KeyError: 'a'"),
        ("import nowhere", "{}, line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("\ndef get_config(:", "{}, line 2: SyntaxError: "),
        (b"\x00\xff", "{}: SyntaxError: "),
        ("def get_config(size): pass", "get_config() in {} takes a variant: add one, --config={}:VARIANT"),
    ],
)
def test_python_files(source, message, written):
    path = written(source)
    assert told(path).startswith(message.replace("{}", str(path)))


def test_a_section_that_is_given_a_value(written):
    path = written(
        "from configs import base\ndef get_config():\n"
        "  config = base.get_config()\n  config.estimator = 'probe'\n  return config"
    )
    assert told(path).startswith(f"{path}, line 4: TypeError: Could not override field 'estimator'")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "{} is damaged: it is not JSON ("),
        ('{"epochs":', "{} is damaged: it is not JSON ("),
        (b"\xff\xfe{", "{} is damaged: it is not JSON ("),
        ("[" * 100_000, "{} is damaged: it is not JSON ("),
        ("[1]", "{} is not the config.json of a run: it holds a list"),
        ("3", "{} is not the config.json of a run: it holds a int"),
        ('{"a.b": 1}', "{} is not the config.json of a run: ConfigDict does not accept dots"),
    ],
)
def test_json_files(text, message, written):
    path = written(text, "config.json")
    assert told(path).startswith(message.replace("{}", str(path)))


def test_a_file_knows_where_it_is(written):
    source = "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'at': __file__})"
    path = written(source)
    assert parse(path).at == str(path)


def test_what_cannot_be_read(tmp_path, written):
    assert told("") == "--config is empty: name a file, like configs/digits.py"
    assert told(tmp_path / "no.py") == f"cannot read '{tmp_path}/no.py': No such file or directory"
    assert told(tmp_path / "no.json") == f"cannot read '{tmp_path}/no.json': No such file or directory"
    assert told(tmp_path) == f"cannot read '{tmp_path}': Is a directory"
    saved = written("{}", "config.json")
    assert told(tmp_path) == f"cannot read '{tmp_path}': Is a directory: choose {saved}"
    assert told(f"{saved}:quick") == f"{saved} has no variants: leave out ':quick'"
    file = ROOT / "configs" / "digits.py"
    assert told(f"{file}:quick") == f"get_config() in {file} takes no variant: leave out ':quick'"


def test_files_elsewhere_give_what_their_functions_do(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = parse(f"{ROOT}/configs/cifar.py:quick")
    assert config.to_dict() == cifar.get_config("quick").to_dict()
    assert config.is_locked


@pytest.mark.parametrize("original", [digits.get_config(), cifar.get_config()])
def test_a_saved_config_is_the_one_that_was_saved(original, tmp_path):
    original.model.cnn.features = (3, 5)
    with Workdir(tmp_path, original.to_dict()) as workdir:
        workdir.resume(print)
        workdir.go_on(print)
        workdir.log("train", 1, {})
    saved = parse(tmp_path / "config.json")
    assert saved.to_dict() == original.to_dict()  # tuples too, which are not equal to lists
    assert saved.is_locked
    with Workdir(tmp_path, saved.to_dict()):  # It goes on: nothing has changed.
        pass


def test_lists_within_lists_are_tuples(written):
    config = read_config(written(json.dumps({"a": [[1], []], "b": {"c": [2]}}), "config.json"))
    assert config.to_dict() == ConfigDict({"a": ((1,), ()), "b": {"c": (2,)}}).to_dict()


SHOW = """
import sys
import config_file
from absl import flags
config = config_file.define_flag("")
flags.FLAGS(sys.argv)
print(config_file.name_of(config), config.value.model.cnn.features, config.value.epochs)
"""


def test_fields_of_a_saved_config_can_be_set_and_its_run_is_called_by_its_data(written):
    path = written(json.dumps(digits.get_config().to_dict()), "config.json")
    command = [sys.executable, "-c", SHOW, f"--config={path}", "--config.epochs=3"]
    done = run([*command, "--config.model.cnn.features=(4, 4)"])
    assert done.stdout == "digits (4, 4) 3\n", done.stderr
    named = run([sys.executable, "-c", SHOW, "--config=configs/cifar.py:quick"])
    assert re.match(r"cifar \(", named.stdout), named.stderr
