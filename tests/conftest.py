"""A strict test run: two fake CPU devices, no silent rank promotion; warnings are errors (pyproject)."""

import os
import sys
import warnings
from importlib import metadata

_FLAGS = [
    "--xla_force_host_platform_device_count=2",
    # Most of the time would go into optimising programs that run once.
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_cpu_parallel_codegen_split_count=1",
]
if metadata.version("jaxlib").startswith("0.10."):
    _FLAGS.append("--xla_cpu_use_fusion_emitters=false")  # halves the rest; later versions do not know it
os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), *_FLAGS))
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # as `command_line` has it

import jax  # noqa: E402
import pytest  # noqa: E402

from tests.signatures import check_all  # noqa: E402

check_all()

jax.config.update("jax_numpy_rank_promotion", "raise")


@pytest.fixture
def x64():
    """Double precision, for oracles that hold to machine precision."""
    with jax.enable_x64(True):
        yield


@pytest.fixture(scope="module")
def undrawn():
    """Reports without their drawings, which take as long as a small run: for tests that look at none."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("decoupled.training.report.svg", lambda figure: "<svg/>")
        yield


def pytest_sessionfinish():
    """Puts on disk which lines have run: a worker may be ended before it does so itself."""
    coverage = sys.modules.get("coverage")
    if (
        coverage is not None
        and "PYTEST_XDIST_WORKER" in os.environ
        and (measured := coverage.Coverage.current())
    ):
        with warnings.catch_warnings(action="ignore"):  # of having measured nothing
            measured.save()
