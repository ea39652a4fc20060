"""The baseline: the boundary hands down exactly what comes from above."""

from decoupled.types import Estimator, Key, PyTree, Reads


def backprop() -> Estimator:
    """The true gradient, passed on: with it at every boundary, the chain is ordinary backprop."""

    def init(key: Key, h: PyTree, y: PyTree) -> PyTree:
        del key, h, y
        return {}

    def estimate(est_params: PyTree, h: PyTree, y: PyTree, signal: PyTree) -> PyTree:
        del est_params, h, y
        assert signal is not None
        return signal

    return Estimator("backprop", init, estimate, None, Reads.INCOMING, sees_y=False, many_arrays=True)
