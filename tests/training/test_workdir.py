"""Who may use a workdir, and what of an unfinished run in it."""

import importlib
import json
import os
import re
import resource
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

import decoupled
from decoupled.training import Workdir, lock, read_metrics
from decoupled.training.going_on import changed_fields

CONFIG = {"epochs": 2, "optimizer": {"learning_rate": 0.1, "schedule": "cosine"}}
NO_FLAG = (
    ", and so is a warm-up; runs of constant rates"
    r" \(config.optimizer.schedule=constant\) need no flag"
)


def go_on(workdir, say=print):
    saved = workdir.resume(say)
    workdir.go_on(say)
    return saved


@pytest.fixture
def unfinished(tmp_path):
    """A run that was killed: it logged steps 1 to 4, with checkpoints of steps 2 and 3."""
    with Workdir(tmp_path, CONFIG) as workdir:
        assert go_on(workdir) is None
        for step in (1, 2, 3, 4):
            workdir.log("train", step, {"loss": 1 / step})
            if step in (2, 3):
                workdir.checkpoint(step, {"w": np.full(3, step)}, {"note": step})
    return tmp_path


def damage(folder, how):
    for path in folder.rglob("*"):
        if path.is_file():
            how(path)


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def flip_last_bit(path):
    content = bytearray(path.read_bytes())
    if content:
        content[-1] ^= 1
        path.write_bytes(content)


def test_a_run_goes_on_from_its_last_checkpoint(unfinished):
    lines = []
    with Workdir(unfinished, CONFIG) as workdir:
        saved = go_on(workdir, lines.append)
        assert saved.step == workdir.last_checkpoint == 3
        assert saved.notes == {"note": 3}
        np.testing.assert_array_equal(saved.leaves[0], [3, 3, 3])
        workdir.log("train", 4, {"loss": 0.5})
    assert lines == ["going on from step 3"]
    # What was logged after the checkpoint is forgotten.
    assert [(line["step"], line["loss"]) for line in read_metrics(unfinished)] == [
        (1, 1.0),
        (2, 0.5),
        (3, 1 / 3),
        (4, 0.5),
    ]


def test_a_kill_after_a_checkpoint_loses_no_event_from_before_it(tmp_path):
    """A run that goes on logs none of them again."""
    with Workdir(tmp_path, CONFIG) as workdir:
        go_on(workdir)
        workdir.log("train", 1, {"loss": 0.25})
        workdir.checkpoint(1, {"w": np.ones(3)}, {})
        (events,) = tmp_path.glob("events.out.tfevents.*")
        assert b"train/loss" in events.read_bytes()


def test_a_line_cut_off_by_a_kill_is_forgotten(unfinished):
    with open(unfinished / "metrics.jsonl", "a", encoding="utf-8") as metrics:
        metrics.write('{"kind": "tr')
    with Workdir(unfinished, CONFIG) as workdir:
        go_on(workdir)
    assert [line["step"] for line in read_metrics(unfinished)] == [1, 2, 3]


@pytest.mark.parametrize("how", [cut, flip_last_bit, Path.unlink])
def test_a_damaged_checkpoint_falls_back_to_the_one_before(how, unfinished):
    damage(unfinished / "checkpoints" / "3", how)
    lines = []
    with Workdir(unfinished, CONFIG) as workdir:
        saved = go_on(workdir, lines.append)
        assert (saved.step, saved.notes) == (2, {"note": 2})
        workdir.checkpoint(3, {"w": np.full(3, 7)}, {"note": 33})
    assert lines[0].startswith("checkpoint of step 3 is damaged (")
    assert lines[0].endswith("): going back to that of step 2")
    assert lines[1:] == [
        "going on from step 2",
        f"the checkpoint of step 3 is now in {unfinished / 'damaged'}",
    ]
    assert [line["step"] for line in read_metrics(unfinished)] == [1, 2]
    assert (unfinished / "damaged" / "3").is_dir()
    with Workdir(unfinished, CONFIG) as workdir:
        assert go_on(workdir).notes == {"note": 33}


def test_every_bit_of_a_checkpoint_counts(unfinished):
    for path in sorted((unfinished / "checkpoints" / "3" / "leaves").rglob("*")):
        if path.is_file() and path.parent.name == "d":
            content = path.read_bytes()
            for at in range(0, len(content), max(1, len(content) // 10)):
                path.write_bytes(content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :])
                with Workdir(unfinished, CONFIG) as workdir:
                    found = workdir._checkpoints
                    try:
                        saved = found._read(3)
                    except Exception:  # told as damage
                        continue
                np.testing.assert_array_equal(saved.leaves[0], [3, 3, 3])
            path.write_bytes(content)


def test_no_good_checkpoint_is_an_error_and_nothing_is_lost(unfinished):
    damage(unfinished / "checkpoints", cut)
    before = (unfinished / "metrics.jsonl").read_bytes()
    with (
        Workdir(unfinished, CONFIG) as workdir,
        pytest.raises(decoupled.DataError, match=r"no checkpoint in .* can be read: checkpoint of step 3"),
    ):
        workdir.resume(print)
    assert (unfinished / "metrics.jsonl").read_bytes() == before
    assert len(list((unfinished / "checkpoints").iterdir())) == 2


def test_a_run_killed_before_its_first_checkpoint_begins_anew(tmp_path):
    with Workdir(tmp_path, CONFIG) as workdir:
        go_on(workdir)
        workdir.log("train", 1, {"loss": 1.0})
    lines = []
    with Workdir(tmp_path, CONFIG) as workdir:
        assert go_on(workdir, lines.append) is None
    assert lines == ["no checkpoint yet: beginning anew"]
    assert read_metrics(tmp_path) == []


def test_two_runs_cannot_share_a_workdir(tmp_path):
    with (
        Workdir(tmp_path, CONFIG),
        pytest.raises(
            decoupled.UsageError, match=r"another run is at work in .*: choose another --workdir"
        ),
    ):
        Workdir(tmp_path, CONFIG)
    Workdir(tmp_path, CONFIG).close()


def test_a_changed_config_is_refused_field_by_field(unfinished):
    other = {"epochs": 3, "optimizer": {"learning_rate": 0.2, "schedule": "cosine"}, "data_dir": "/here"}
    message = (
        r"another config \(config.epochs was 2, is 3; config.optimizer.learning_rate was 0.1, is 0.2; a"
        rf" schedule is drawn out over all epochs{NO_FLAG}\): choose another --workdir, or go on with"
        " --accept_config_changes"
    )
    with pytest.raises(decoupled.UsageError, match=message):
        Workdir(unfinished, other)
    assert json.loads((unfinished / "config.json").read_text(encoding="utf-8")) == CONFIG
    with Workdir(unfinished, other, accept_changes=True) as workdir:
        assert workdir.resume(print).step == 3
        # Not before it is certain that the run goes on.
        assert json.loads((unfinished / "config.json").read_text(encoding="utf-8")) == CONFIG
        workdir.go_on(print)
    assert json.loads((unfinished / "config.json").read_text(encoding="utf-8")) == other


def test_tuples_and_absent_fields():
    assert changed_fields({"a": [1, 2]}, {"a": (1, 2), "download": False}) == []
    assert changed_fields({}, {"a": {"b": 1}}) == ["config.a.b was 'absent', is 1"]


def test_a_finished_run_is_left_alone(tmp_path):
    with Workdir(tmp_path, CONFIG) as workdir:
        go_on(workdir)
        workdir.log("train", 1, {"loss": 1.0})
        workdir.finish({"accuracy": 1, "steps": 1}, lambda summary, lines: "page")
    left = content(tmp_path)
    message = "already holds a finished run: choose another --workdir, or train it further with"
    for fewer in (CONFIG, {**CONFIG, "epochs": 1}):
        for accept in (False, True):
            with pytest.raises(decoupled.UsageError, match=message):
                Workdir(tmp_path, fewer, accept)
    # Of old runs nothing was kept to go on from.
    with (
        Workdir(tmp_path, {**CONFIG, "epochs": 3}, accept_changes=True) as workdir,
        pytest.raises(decoupled.UsageError, match="a finished run, but no checkpoint of its end"),
    ):
        workdir.resume(print)
    assert content(tmp_path) == left


def content(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
def test_more_epochs_are_no_other_run_where_nothing_is_drawn_out_over_them(unfinished, schedule):
    def settings(epochs):
        return {"epochs": epochs, "optimizer": {"schedule": schedule}}

    with Workdir(unfinished, settings(2), accept_changes=True) as workdir:
        go_on(workdir)
        workdir.finish({"steps": 3}, lambda summary, lines: "page")
    assert [path.name for path in (unfinished / "checkpoints").iterdir()] == ["3"]
    if schedule == "cosine":
        message = (
            r"holds a finished run with another config \(config.epochs was 2, is 4; a schedule is drawn out"
            rf" over all epochs{NO_FLAG}\): choose another --workdir, or go on with --accept_config_changes"
        )
        with pytest.raises(decoupled.UsageError, match=message):
            Workdir(unfinished, settings(4))
    with Workdir(unfinished, settings(4), accept_changes=schedule == "cosine") as workdir:
        assert workdir.changes == ["config.epochs was 2, is 4"]
        assert go_on(workdir).step == 3
    # It is now an unfinished run.
    assert not (unfinished / "summary.json").exists()
    assert json.loads((unfinished / "summary_at_step_3.json").read_text(encoding="utf-8")) == {"steps": 3}
    with Workdir(unfinished, settings(4)) as workdir:
        assert go_on(workdir).step == 3


@pytest.mark.parametrize("summary", ["x", "[]", "{}", '{"steps": "../../elsewhere"}'])
def test_a_damaged_summary_is_kept_as_it_is(summary, unfinished):
    (unfinished / "summary.json").write_text(summary, encoding="utf-8")
    with Workdir(unfinished, {**CONFIG, "epochs": 4}, accept_changes=True) as workdir:
        assert go_on(workdir).step == 3
    assert not (unfinished / "summary.json").exists()
    assert (unfinished / "summary_at_step_3.json").read_text(encoding="utf-8") == summary


def test_a_run_that_logged_nothing_before_its_checkpoint_goes_on_too(tmp_path):
    with Workdir(tmp_path, CONFIG) as workdir:
        go_on(workdir)
        workdir.checkpoint(3, {"w": np.ones(3)}, {})
    lines = []
    with Workdir(tmp_path, CONFIG) as workdir:
        assert go_on(workdir, lines.append).step == 3
    assert lines == ["going on from step 3"]


def test_metrics_that_someone_removed(unfinished):
    (unfinished / "metrics.jsonl").unlink()
    with Workdir(unfinished, CONFIG) as workdir:
        assert go_on(workdir).step == 3
        workdir.log("train", 4, {"loss": 0.5})
    assert [line["step"] for line in read_metrics(unfinished)] == [4]


@pytest.mark.parametrize("system", ["fcntl", "msvcrt"])
def test_locks_of_either_kind_of_system(system, tmp_path, monkeypatch):
    """Windows has no fcntl, but `msvcrt.locking`, which refuses with a PermissionError."""
    held = set()

    def locking(descriptor, mode, count):
        assert (mode, count, os.lseek(descriptor, 0, os.SEEK_CUR)) == ("not waiting", 1, 0)
        if (tmp_path / "lock").stat().st_ino in held:
            raise PermissionError(13, "Permission denied")
        held.add(os.fstat(descriptor).st_ino)

    if system == "msvcrt":
        monkeypatch.setitem(sys.modules, "fcntl", None)
        windows = SimpleNamespace(locking=locking, LK_NBLCK="not waiting")
        monkeypatch.setitem(sys.modules, "msvcrt", windows)
    reloaded = importlib.reload(lock)
    monkeypatch.setattr("decoupled.training.workdir.locked", reloaded.locked)
    try:
        with (
            Workdir(str(tmp_path), CONFIG),
            pytest.raises(decoupled.UsageError, match=r"another run is at work in .*: choose another"),
        ):
            Workdir(tmp_path, CONFIG)
    finally:
        monkeypatch.undo()
        importlib.reload(lock)
    assert len(held) == (system == "msvcrt")


def test_nothing_but_the_lock_needs_a_system():
    package = Path(decoupled.__file__).parent
    users = {
        p.name
        for p in package.rglob("*.py")
        if re.search(r"import (fcntl|resource|pwd)\b", p.read_text(encoding="utf-8"))
    }
    assert users == {"lock.py"}


def test_a_workdir_must_be_writable(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.raises(decoupled.UsageError, match=r"cannot write to .*: choose another --workdir"):
        Workdir(tmp_path / "file" / "run", {})
    with pytest.raises(decoupled.UsageError, match="is a file: choose another --workdir"):
        Workdir(tmp_path / "file", {})
    for path in (Path("~nobody-of-that-name/run"), tmp_path / ("x" * 300)):
        with pytest.raises(decoupled.UsageError, match="cannot write to"):
            Workdir(path, {})


def test_a_foreign_run_is_left_alone(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("mine", encoding="utf-8")
    with pytest.raises(decoupled.UsageError, match="already holds a run, but not its config"):
        Workdir(tmp_path, {})
    assert not (tmp_path / "config.json").exists()
    assert (tmp_path / "metrics.jsonl").read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "damaged: it is not JSON"),
        ("[]", "holds a list"),
        ('{"epochs": "3"}', "epochs is '3'"),
        ('{"epochs": null}', "epochs is None"),
        ('{"epochs": {"a": 1}}', "epochs is {'a': 1}"),
        ('{"__class__": 1}', "not the config.json of a run"),
    ],
)
def test_a_config_that_cannot_be_read(text, why, unfinished):
    (unfinished / "config.json").write_text(text, encoding="utf-8")
    for accept in (False, True):
        with pytest.raises(decoupled.UsageError, match="already holds a run, but not its config") as caught:
            Workdir(unfinished, CONFIG, accept)
        assert why in str(caught.value)
        assert "\n" not in str(caught.value)


def test_a_folder_in_which_nothing_was_logged_is_as_new(tmp_path):
    for settings in (CONFIG, {}):
        with Workdir(tmp_path, settings) as workdir:
            go_on(workdir)
    assert json.loads((tmp_path / "config.json").read_text(encoding="utf-8")) == {}


def test_a_workdir_that_vanished(unfinished):
    with Workdir(unfinished, CONFIG) as workdir:
        go_on(workdir)
        unfinished.rename(unfinished.with_name("elsewhere"))
        with pytest.raises(decoupled.TrainingError, match="is gone, and with it the checkpoints"):
            workdir.checkpoint(5, {"w": np.zeros(3)}, {})
    assert not unfinished.exists()
    with Workdir(unfinished.with_name("elsewhere"), CONFIG) as workdir:
        assert go_on(workdir).step == 3


def test_a_full_disk_leaves_the_checkpoint_before(unfinished, monkeypatch):
    with Workdir(unfinished, CONFIG) as workdir:
        go_on(workdir)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))  # no file can grow beyond
        try:
            with pytest.raises(
                decoupled.TrainingError,
                match=r"cannot write the checkpoint of step 5 .*; that of step 3 is intact",
            ):
                workdir.checkpoint(5, {"w": np.random.default_rng(0).normal(size=30_000)}, {})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    with Workdir(unfinished, CONFIG) as workdir:
        assert go_on(workdir).step == 3
