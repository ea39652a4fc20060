"""What each method waits for, as the papers have it: the signal is as much the method as the formula."""

from decoupled import Reads
from tests import helpers

_LATER = {
    "backprop": Reads.INCOMING,
    "bp_lambda": Reads.INCOMING,
    "direct_feedback_alignment": Reads.ERROR,
    "kickback": Reads.ERROR,
    "sg_prop": Reads.INCOMING,
}


def test_only_these_wait_and_for_the_signal_they_are_named_for():
    reads = {name: estimator.reads for name, estimator in helpers.every_method().items()}
    assert {name: read for name, read in reads.items() if read is not Reads.NOTHING} == _LATER
