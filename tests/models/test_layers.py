"""What layers compute, by definitions written here."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

import decoupled
from decoupled import models
from decoupled.models.resnet import BasicBlock, BottleneckBlock, Stem
from decoupled.modules.backward_rules import feedback_alignment, with_backward_rule
from tests.models.tiny import VOCABULARY, filled, images, networks, output_of, tokens, variables_of

KEY = jax.random.key(0)


def test_vgg_halves_below_the_layer_above():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 7, 3)), jnp.float32)
    layers = models.vgg(4, (2, "pool", 2, "pool"), dense=())
    below, above, out = (output_of(layers[:i], x) for i in (1, 2, 3))
    assert (below.shape, above.shape, out.shape) == ((2, 5, 7, 2), (2, 2, 3, 2), (2, 4))
    pooled = below[:, :4, :6].reshape(2, 2, 2, 3, 2, 2).max((2, 4))
    plain = models.vgg(4, (2, 2), dense=())[1]
    np.testing.assert_allclose(output_of(layers[1:2], below), output_of([plain], pooled), rtol=1e-6)


@pytest.mark.parametrize("size", [6, 7])
def test_shortcuts_without_parameters_lie_where_convolutions_do(size):
    rng = np.random.default_rng(0)
    h = jnp.asarray(np.abs(rng.normal(size=(2, size, size, 3))), jnp.float32)
    block = BasicBlock(5, 2, projection=False, norm="none")
    params = filled(jax.eval_shape(lambda: block.init(KEY, h, False)), scale=0.0)["params"]
    assert set(params) == {"Conv_0", "Conv_1"}
    # One convolution takes the pixel in the middle of its kernel, the other hands it on: in all twice h.
    middle = np.zeros((3, 3, 3, 5))
    middle[1, 1, :, 1:4] = np.eye(3)  # a channel of zeros is added on each side
    on = np.zeros((3, 3, 5, 5))
    on[1, 1] = np.eye(5)
    kernels = {"Conv_0": middle, "Conv_1": on}
    params = {name: {**params[name], "kernel": jnp.asarray(kernel)} for name, kernel in kernels.items()}
    expected = np.pad(2 * np.asarray(h)[:, ::2, ::2], ((0, 0), (0, 0), (0, 0), (1, 1)))
    np.testing.assert_allclose(block.apply({"params": params}, h, False), expected, rtol=1e-6)


def test_projections_stand_where_the_shape_changes_alone():
    h = jnp.ones((2, 4, 4, 8))

    def convolutions(block):
        out, variables = jax.eval_shape(lambda: block.init_with_output(KEY, h, False))
        return out.shape, sorted(
            p["kernel"].shape[0] for n, p in variables["params"].items() if "Conv" in n
        )

    assert convolutions(BasicBlock(8)) == ((2, 4, 4, 8), [3, 3])
    assert convolutions(BasicBlock(8, 2)) == ((2, 2, 2, 8), [1, 3, 3])
    assert convolutions(BottleneckBlock(2)) == ((2, 4, 4, 8), [1, 1, 3])
    assert convolutions(BottleneckBlock(4, 2)) == ((2, 2, 2, 16), [1, 1, 1, 3])
    stem = jax.eval_shape(
        lambda: Stem(6, large=True).init_with_output(KEY, jnp.ones((2, 64, 64, 3)), False)
    )
    assert stem[0].shape == (2, 16, 16, 6)


def test_gpt_sees_nothing_of_the_future():
    layers, x = networks()["gpt"], tokens(size=1)[0]
    time = x.shape[1]
    changed = [x.at[:, t].set((x[:, t] + 1) % VOCABULARY) for t in range(time)]
    before, *after = output_of(layers, jnp.concatenate([x, *changed]))
    for t in range(time):
        np.testing.assert_array_equal(after[t][:t], before[:t])
        assert (np.abs(after[t] - before)[t:].max(-1) > 1e-6).all()
    shorter = output_of(layers, x[:, :2])
    np.testing.assert_allclose(shorter[0], before[:2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("class_token", [True, False])
def test_vit_sees_all_patches_and_where_they_are(class_token):
    x, side = images(side=4, size=1)[0], 2
    layers = models.vit(1, 4, 3, heads=2, patch_size=side, class_token=class_token)
    positions = jax.eval_shape(layers[0].init, KEY, x).params["positions"]
    assert positions.shape == (1, 4 + class_token, 4)
    exchanged = jnp.concatenate([x[:, side:], x[:, :side]], 1)  # the same patches elsewhere
    changed = [x.at[:, i, j].add(1) for i in (0, side) for j in (0, side)]
    out, *others = output_of(layers, jnp.concatenate([x, exchanged, *changed]))
    assert all(np.abs(other - out).max() > 1e-5 for other in others)


def test_vit_blocks_treat_patches_alike():
    block = networks()["vit"][1]
    h = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 4)), jnp.float32)
    order = np.array([3, 0, 4, 1, 2])
    out = output_of([block], jnp.concatenate([h, h[:, order]]))
    np.testing.assert_allclose(out[2:], out[:2, order], rtol=1e-5, atol=1e-6)


def test_a_recurrent_layer_is_its_recurrence():
    x = images()[0].reshape(4, 4, 8)
    layer, output = models.rnn(1, 3, 2, cell=nn.SimpleCell)
    (cell,) = variables_of([layer], x)[1][0][0].values()
    h = output_of([layer], x)
    carry = np.zeros((4, 3))
    for t in range(4):
        bias = np.asarray(cell["i"]["bias"])[None]
        carry = np.tanh(np.asarray(x)[:, t] @ cell["i"]["kernel"] + bias + carry @ cell["h"]["kernel"])
        np.testing.assert_allclose(h[:, t], carry, rtol=1e-4, atol=1e-5)
    last = models.rnn(1, 3, 2, cell=nn.SimpleCell, last_step=True)[1]
    np.testing.assert_allclose(output_of([last], h), output_of([output], h)[:, -1], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("cell", [nn.SimpleCell, nn.GRUCell, nn.LSTMCell])
def test_cells_and_backward_rules_go_together(cell):
    x = images()[0].reshape(4, 4, 8)
    layer = with_backward_rule(models.rnn(1, 3, 2, cell=cell)[0], feedback_alignment)

    def loss(key):
        params, state = layer.init(key, x)
        assert "feedback" in state
        return jax.grad(lambda params: layer.apply(params, state, x, key, True)[0].sum())(params)

    jax.eval_shape(loss, KEY)


def test_carries_keep_their_precision_in_bfloat16():
    # Gates that are open, by their biases: the cell's state is a sum of 600 parts of 1/256.
    layer = models.rnn(1, 1, 1, cell=nn.LSTMCell, dtype=jnp.bfloat16)[0]
    x = jnp.ones((1, 600, 1))
    ((name, cell),) = jax.eval_shape(layer.init, KEY, x).params.items()
    cell = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape), cell)
    for gate, bias in {"hf": 50.0, "hi": 50.0, "ho": 50.0, "hg": float(np.arctanh(1 / 256))}.items():
        cell[gate]["bias"] = jnp.full((1,), bias)
    h, _ = layer.apply({name: cell}, {}, x, KEY, False)
    assert h.dtype == jnp.bfloat16
    np.testing.assert_allclose(h[0, -1, 0].astype(float), np.tanh(600 / 256), atol=0.01)


@pytest.mark.parametrize(("family", "layer"), [("vgg", 0), ("vit", 0), ("vit", 1), ("gpt", 0), ("rnn", 1)])
def test_dropout_is_drawn_in_training_alone(family, layer):
    layers = networks()[family][layer : layer + 1]
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 4, 4)), jnp.float32)
    if layer == 0:
        x = tokens()[0] if family == "gpt" else images()[0]
    network, variables = variables_of(layers, x)

    @jax.jit
    def twice(params, state):
        return [
            [network.apply(params, state, x, jax.random.key(key), train)[0] for key in (0, 1)]
            for train in (True, False)
        ]

    in_training, in_evaluation = twice(*variables)
    assert np.any(in_training[0] != in_training[1])
    np.testing.assert_array_equal(*in_evaluation)


@pytest.mark.parametrize(
    ("make", "x", "message"),
    [
        (lambda: models.vgg(3, (4, "poll")), None, "'poll' is no layer of a VGG of width 1.0"),
        (lambda: models.vgg(3, (4, 2), width=0.25), None, "2 is no layer of a VGG of width 0.25"),
        (lambda: models.vgg(3, ("pool", "pool", 4)), images(3)[0], "1x1 is too small an image"),
        (lambda: models.resnet(50 + 1, 3), None, "no ResNet for small images has 51 layers: choose 6 n"),
        (lambda: models.resnet(2, 3), None, "no ResNet for small images has 2 layers"),
        (
            lambda: models.resnet_large(20, 3),
            None,
            "no ResNet for large images has 20 layers: choose 18, 34",
        ),
        (lambda: models.vit(1, 5, 3, heads=2, patch_size=2), None, "2 heads cannot share a width of 5"),
        (
            lambda: models.vit(1, 4, 3, heads=2, patch_size=3),
            images(4)[0],
            "4x4 cannot be cut into patches",
        ),
        (lambda: models.gpt(1, 5, 3, heads=2, context=2), None, "2 heads cannot share a width of 5"),
        (
            lambda: models.gpt(1, 4, 5, heads=2, context=3),
            tokens(4)[0],
            "4 tokens is longer than the context",
        ),
        (lambda: models.gpt(1, 4, 5, heads=2, context=4), jnp.ones((2, 4)), r"not float32\[2, 4\]"),
        (lambda: models.rnn(1, 4, 5), tokens(4)[0], r"takes \(batch, time, features\), not \[4, 4\]"),
        (lambda: models.rnn(1, 4, 5, vocabulary=5), images(4)[0], r"tokens are integers \(batch, time\)"),
    ],
)
def test_what_does_not_fit_says_so(make, x, message):
    with pytest.raises(decoupled.UsageError, match=message) as caught:
        variables_of(make(), x)
    assert "\n" not in str(caught.value)
