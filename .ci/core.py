"""The core alone, as installed: a decoupled chain learns, and what needs more says how to get it.

.ci/wheel runs this in an environment that holds the six packages of the core and what those need.
"""

import importlib
from importlib import metadata, resources

import jax
import jax.numpy as jnp
import numpy as np
import optax

import decoupled
from decoupled import estimators, losses, models

TRAIN = ("decoupled.training.loop", "decoupled.training.builder", "decoupled.data.find")
ANALYSIS = ("decoupled.analysis.probes", "decoupled.analysis.figures")

assert "site-packages" in decoupled.__file__, decoupled.__file__
assert resources.files("decoupled").joinpath("py.typed").is_file()
assert metadata.version("decoupled") == decoupled.__version__
folders = {file.parts[0] for file in metadata.files("decoupled")}
assert folders == {"decoupled", f"decoupled-{decoupled.__version__}.dist-info"}, folders

for name in (*TRAIN, *ANALYSIS):
    told = ""
    try:
        importlib.import_module(name)
    except ImportError as error:
        told = str(error)
    extra = "train" if name in TRAIN else "analysis"
    assert told.endswith(f" is missing: pip install 'decoupled[{extra}]'"), (name, told)

# Three blobs, far apart.
y = np.arange(96) % 3
x = np.eye(3)[y] * 3 + np.random.default_rng(0).normal(size=(96, 3))
x, y = jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.int32)
modules = decoupled.cut(models.mlp(2, 16, 3), boundaries=[0, 1])
sg, adam = estimators.loss_shaped(3, context=estimators.one_hot(3)), optax.adam(1e-2)
learner = decoupled.make_learner(modules, [sg] * 2, losses.softmax_cross_entropy, adam, adam)
state, update = learner.init(jax.random.key(0), x, y), jax.jit(learner.update)
for step in range(100):
    state, _ = update(state, x, y, jax.random.key(step))
accuracy = float((learner.predict(state, x).argmax(-1) == y).mean())
assert accuracy > 0.9, accuracy
fitted = decoupled.fit(learner, (np.asarray(x), np.asarray(y)), epochs=30, batch_size=32, progress=False)
assert fitted.history[-1]["accuracy"] > 0.9, fitted.history[-1]
print(f"the core alone: accuracy {accuracy:.2f} of three classes")
