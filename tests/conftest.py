"""Strictness for every test: no silent dtype or rank promotion, no warning, no flaky deadline."""

import gc
import os
import signal
from pathlib import Path

# Threads of NumPy's linear algebra wait for work in a loop: a quarter of the time of the figures'
# tests. Read when NumPy is imported: by the workers of `-n`, and by scripts that tests start.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Else a GPU multiplies float32 as TF32 and a TPU as bfloat16, too coarsely for these tolerances.
jax.config.update("jax_default_matmul_precision", "highest")
os.environ["JAX_DEFAULT_MATMUL_PRECISION"] = "highest"  # of scripts that tests start
# Every test compiles something new, and runs it once or twice; so do scripts that tests start.
# XLA's older emitters, in one part, take half the time; a later version may not have these flags.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if jax.__version_info__ < (0, 11):
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}".strip()

# Tracing makes many objects, and few cycles of dead ones: to look for them takes 4 % of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 50)

# Compilation makes the first example slow: a deadline would measure the compiler.
hypothesis.settings.register_profile("straw", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.register_profile("accelerator", deadline=None, max_examples=3, derandomize=True)
hypothesis.settings.load_profile("straw")

# What a shell starts in the background ignores Ctrl-C, and under nohup a hangup, and so would the
# scripts that tests start and then stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)

_LONG = {
    "test_run", "test_docs", "test_weight_prediction_study", "test_char_lm_study", "test_mesh",
    "test_readme", "test_weight_prediction", "test_examples", "test_notebook", "test_analyse",
    "test_faults", "test_reproduce", "test_benchmark", "test_accelerator",
}  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_configure(config):
    """Make warnings errors: not in pyproject.toml, where those of other plugins' start would be."""
    config.addinivalue_line("filterwarnings", "error")
    if config.option.markexpr == "accelerator":
        hypothesis.settings.load_profile("accelerator")


def pytest_collection_modifyitems(items):
    """Put the files that take longest first, so that the workers of `-n` end together."""
    items.sort(key=lambda item: item.path.stem not in _LONG)


def pytest_ignore_collect(collection_path, config):
    """Collect the library's tests alone for an accelerator: all others need more packages."""
    core = Path(__file__).parent / "core"
    related = collection_path in (core, *core.parents) or core in collection_path.parents
    return True if config.option.markexpr == "accelerator" and not related else None
