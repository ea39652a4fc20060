"""Bookkeeping: who gets what, what is dropped, when a stage may stop. No process is started."""

import logging

import numpy as np
import pytest

from decoupled.asynchronous.lane import WINDOW, Lane
from decoupled.asynchronous.messages import (
    Counts,
    Failed,
    Final,
    Fitted,
    Input,
    Snapshot,
    Stepped,
    Stop,
    Target,
)
from decoupled.asynchronous.report import AsyncOptions
from decoupled.asynchronous.router import Router
from decoupled.errors import TrainingError


def make_router(**options):
    options = AsyncOptions(**{"queue_size": 3, "max_restarts": 1, **options})
    return Router([("low",), ("high", "head")], ["state 0", "state 1"], 0, options)


def stepped(number, updates=1, up=True, down=False, loss=None):
    up = Input(number, f"h {number}", f"y {number}") if up else None
    return Stepped(
        number, up, Target(number, f"t {number}") if down else None, loss, Counts(updates=updates)
    )


def test_a_full_lane_drops_the_oldest():
    lane = Lane(2)
    for number in range(5):
        lane.put(Target(number, None))
    assert lane.dropped == 3
    assert [lane.take().number for _ in range(WINDOW)] == [3, 4]


def test_a_worker_is_sent_no_more_than_it_can_look_ahead():
    lane = Lane(10)
    for number in range(WINDOW + 2):
        lane.put(Target(number, None))
    taken = [lane.take().number for _ in range(WINDOW)]
    assert lane.take() is None
    lane.done(taken[0])
    assert lane.take().number == WINDOW


def test_what_a_dead_worker_had_is_sent_again_in_order():
    lane = Lane(10)
    for number in range(WINDOW + 1):
        lane.put(Target(number, None))
    for _ in range(WINDOW):
        lane.take()
    lane.take_back()
    assert [lane.take().number for _ in range(WINDOW)] == list(range(WINDOW))
    assert lane.dropped == 0


def test_inputs_go_up_with_their_labels_and_targets_down():
    router = make_router()
    router.feed("x 0", "y 0")
    assert router.next_for(0) == Input(0, "x 0", "y 0")
    assert router.next_for(1) is None
    router.take(0, stepped(0))
    assert router.next_for(1) == Input(0, "h 0", "y 0")
    router.take(1, stepped(0, up=False, down=True, loss=0.5))
    assert router.next_for(0) == Target(0, "t 0")
    assert router.losses == [(0, 0.5)]


def test_stages_stop_only_when_nothing_more_can_come():
    router = make_router()
    router.feed("x", "y")
    router.next_for(0)
    router.end_feed()
    assert router.next_for(0) is None  # its input is not dealt with
    router.take(0, stepped(0))
    assert router.next_for(0) is None  # a target may come
    router.next_for(1)
    router.take(1, stepped(0, up=False, down=True, loss=0.5))
    assert router.next_for(1) == Stop()
    assert isinstance(router.next_for(0), Target)
    assert router.next_for(0) is None
    router.take(0, Fitted(0, Counts(updates=1, fits=1)))
    assert router.next_for(0) == Stop()
    assert router.next_for(0) is None
    router.take(0, Final("end 0"))
    assert not router.finished
    router.take(1, Final("end 1"))
    assert router.finished
    assert router.final_states() == ["end 0", "end 1"]


def test_a_stage_restarts_from_its_snapshot(caplog):
    router = make_router()
    for number in range(3):
        router.feed(number, number)
    router.next_for(0)
    router.take(0, stepped(0, updates=1))
    router.take(0, Snapshot("after one", 1))
    router.next_for(0)
    router.take(0, stepped(1, updates=2))
    router.next_for(0)
    with caplog.at_level(logging.WARNING):
        router.died(0, "was killed by SIGKILL")
    assert router.start_state(0) == "after one"
    (event,) = router.events
    assert (event.stage, event.restarted_at, event.lost_updates, event.updates) == (0, 2, 1, 2)
    for part in ("stage 0 (low)", "SIGKILL", "minibatch 2", "latest 1 updates"):
        assert part in caplog.text
    assert router.next_for(0).number == 2
    router.take(0, stepped(2, updates=1))
    assert router.reports()[0].counts.updates == 3
    assert router.reports()[0].lost_updates == 1
    assert router.error is None
    assert [router.next_for(1).h for _ in range(2)] == ["h 0", "h 1"]  # it has lost nothing


def test_too_many_deaths_end_the_run():
    router = make_router(max_restarts=1)
    router.died(1, "was killed by SIGKILL")
    assert router.error is None
    router.take(1, Failed("ValueError: no", "traceback"))
    router.died(1, "ended with exit code 0")
    assert isinstance(router.error, TrainingError)
    for part in ("stage 1 (high head)", "ValueError: no", "1 restarts"):
        assert part in str(router.error)


@pytest.mark.parametrize("loss", [np.nan, np.inf])
def test_a_loss_that_is_no_number_ends_the_run(loss):
    router = make_router()
    router.feed("x", "y")
    router.next_for(0)
    router.take(0, stepped(0))
    router.next_for(1)
    router.take(1, stepped(0, up=False, down=True, loss=loss))
    with pytest.raises(TrainingError, match=r"minibatch 0, in stage 1 \(high head\)"):
        raise router.error
