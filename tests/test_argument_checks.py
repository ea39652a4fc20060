"""What is given in the place of modules, estimators, optimizers or lists of them: one line that helps."""

import optax
import pytest
from flax import linen as nn
from flax import nnx

import decoupled
from decoupled import UsageError, estimators, losses
from decoupled.argument_checks import check_estimator
from tests import helpers

MODULES = helpers.mlp_modules()
SG = estimators.loss_shaped(helpers.CLASSES)
SGD = optax.sgd(1.0)


def learner(modules=MODULES, given=(SG, SG), optimizer=SGD, estimator_optimizer=SGD):
    loss = losses.softmax_cross_entropy
    return decoupled.make_learner(modules, given, loss, optimizer, estimator_optimizer)


def bare():
    return nnx.Linear(1, 1, rngs=nnx.Rngs(0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: learner(given=SG), r"estimators come in a list, but one estimator \(loss_shaped\) was"),
        (lambda: learner(given=estimators.backprop), "estimators come in a list, but backprop was given"),
        (lambda: learner(given="linear"), "estimators come in a list, but 'linear' was given"),
        (lambda: learner(given=None), "estimators come in a list, but None was given"),
        (lambda: learner(given=[SG, estimators.backprop]), r"estimator 1: backprop .* it, backprop\(\)$"),
        (lambda: learner(given=[estimators.probe, SG]), r"estimator 0: .* call it, probe\(num_outputs\)$"),
        (lambda: learner(given=[SG, "linear"]), r"estimator 1: 'linear' is a name, .*linear\(\.\.\.\)"),
        (lambda: learner(given=[SG, None]), "estimator 1: an estimator is needed, .* not None"),
        (
            lambda: learner(given=[MODULES[0], SG]),
            r"estimator 0: .* needed, .* not one module \(hidden_0\)",
        ),
        (lambda: learner(given=[[SG, SG]]), "estimator 0: an estimator is needed, .* not a list"),
        (
            lambda: learner(given=[SG] * 3),
            "3 modules have 2 boundaries between them, but 3 estimators were",
        ),
        (lambda: learner(modules=MODULES[0]), r"modules come in a list, but one module \(hidden_0\) was"),
        (lambda: learner(modules=nn.Dense(3)), "modules come in a list, but a Dense was given"),
        (lambda: learner(modules=[nn.Dense(3)]), "module 0: a Dense is not .* make it one with from_linen"),
        (lambda: learner(modules=[bare()]), "module 0: a Linear is not .* make it one with from_nnx"),
        (
            lambda: learner(modules=[nn.relu]),
            "module 0: relu is not a module .* from_functions, from_linen",
        ),
        (lambda: learner(modules=[SG, SG]), r"module 0: one estimator \(loss_shaped\) is not a module"),
        (lambda: learner(optimizer=optax.adam), r"^optimizer: adam is not .* it, adam\(learning_rate\)"),
        (lambda: learner(estimator_optimizer=1e-3), r"^estimator_optimizer: 0\.001 is not an optax"),
        (lambda: decoupled.compose(MODULES[0]), r"modules come in a list, but one module \(hidden_0\)"),
        (lambda: decoupled.compose([nn.Dense(3)]), "module 0: a Dense is not a module of a chain"),
        (lambda: decoupled.cut(nn.Dense(3), [0]), "layers come in a list, but a Dense was given"),
        (lambda: decoupled.stack_equal(MODULES[0]), "modules come in a list"),
        (lambda: decoupled.with_backward_rule(nn.Dense(3), None), "with_backward_rule: a Dense is not"),
        (lambda: estimators.bp_lambda(estimators.linear), r"bp_lambda: linear is .* call it, linear\(\)"),
        (lambda: decoupled.split_optimizer(optax.adam, SGD), r"split_optimizer, layers: adam is not"),
        (lambda: decoupled.split_optimizer(SGD, {"a": optax.sgd}), "split_optimizer, a: sgd is not an opt"),
    ],
)
def test_what_is_wrong_and_the_way_out(call, message):
    with pytest.raises(decoupled.UsageError, match=message) as raised:
        call()
    assert "\n" not in str(raised.value)


def test_any_list_of_estimators_will_do():
    links = decoupled.stack_equal(decoupled.cut(decoupled.models.mlp(3, 4, helpers.CLASSES), [0, 1, 2]))
    for given in ([SG, SG], (SG, SG), (SG for _ in range(2))):
        assert len(learner(links, given).estimators) == 3
        assert learner(given=[SG, estimators.backprop()]).estimators[1].name == "backprop"
    check_estimator("boundary", SG)


def test_a_loss_is_a_function():
    with pytest.raises(UsageError, match=r"^loss: a function is needed, .* not 'log'"):
        decoupled.make_learner(MODULES, (SG, SG), "log", SGD, SGD)
