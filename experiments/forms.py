"""What stands in the place of dL/dh in each row of the comparison, and its loss, as formulas for tables."""

from ml_collections import ConfigDict

_OF_RULE = {
    "feedback_alignment": "dL/dh, by B for W",
    "sign_symmetric": "dL/dh, by sign(W)|B|",
}
_OF_METHOD = {
    "auxiliary_network": "dl/dh, l of a network built like the layers above",
    "backprop": "dL/dh",
    "borrowed_next": "l'(f(h)) df/dh, f the next module some steps ago",
    "borrowed_readout": "dl(f(h), y)/dh, f the last module some steps ago",
    "convolutional": "convolutional(h, y)",
    "direct_feedback_alignment": "error B",
    "direct_random_target_projection": "-y B",
    "kickback": "error A, A of 0 and 1",
    "linear": "hA + yB + c",
    "local_loss": "dl/dh, l of an auxiliary head",
    "loss_shaped": "(softmax(hW' + b) - y)V",
    "mean_teacher": "(p - q)W', p = softmax(hW + b) taught by q(h)",
    "mlp": "mlp(h, y)",
    "noise": "ε ~ N(0, s)",
    "probe": "dl(hW + b, y)/dh",
    "recursive_least_squares": "(h, y, 1)K",
    "sigmoid": "d * sigmoid(hA) + yB + c",
    "surrogate": "dl/dh, of a network like the layers above, fitted to dL/dh",
    "similarity": "dl/dh, l = |S(hM) - S(y)|² and a probe's",
}
# Where config.estimator.conditioned is False, and that makes a difference.
_WITHOUT_LABELS = {
    "convolutional": "convolutional(h)",
    "linear": "hA + c",
    "loss_shaped": "softmax(hW' + b)V + c",
    "mlp": "mlp(h)",
    "sigmoid": "d * sigmoid(hA) + c",
    "recursive_least_squares": "(h, 1)K",
}
# Methods that are a fixed matrix: h descends this, with B or A', or the W' that a rule puts in its place.
_FIXED_MATRIX = "-<hB', t>, t = -{}"
_LOSS_OF_RULE = {rule: _FIXED_MATRIX.format("dL/dz of the layer above") for rule in _OF_RULE}
_LOSS_OF_METHOD = {
    "backprop": "none",
    "direct_feedback_alignment": _FIXED_MATRIX.format("error"),
    "direct_random_target_projection": _FIXED_MATRIX.format("(-y)"),
    "kickback": _FIXED_MATRIX.format("error").replace("B", "A"),
    "noise": "none",
}


def loss_of(config: ConfigDict, own_loss: bool) -> str:
    """U17's L_SG in a run with this config: what its estimator is fitted by, or what h descends.

    Args:
      own_loss: as its estimator declares it.
    """
    rule, name = config.model.backward_rule, config.estimator.name
    if rule != "exact":
        return _LOSS_OF_RULE[rule]
    return _LOSS_OF_METHOD.get(name, "l" if own_loss else "|SG(h, y) - dL/dh|²")


def form_of(config: ConfigDict) -> str:
    """Of the estimate in a run with this config; a method of one's own is called by its name."""
    rule = config.model.backward_rule
    return _form(config.estimator, config.estimator.name) if rule == "exact" else _OF_RULE[rule]


def _form(section: ConfigDict, name: str) -> str:
    if name == "bp_lambda":
        lam, mixed = section.bp_lambda.lam, _form(section, section.bp_lambda.estimator)
        return f"{1 - lam:g} [{mixed}] + {lam:g} dL/dh"
    if name == "sg_prop":
        scale, own = section.sg_prop.scale, _form(section, section.sg_prop.estimator)
        return f"s + {scale:g} d|s - dL/dh|²/dh, s = {own}"
    labelled = _OF_METHOD.get(name, name)
    return labelled if section.conditioned else _WITHOUT_LABELS.get(name, labelled)
