"""Strictness for every test: no silent dtype or rank promotion, no flaky deadline."""

import os
import signal

import hypothesis
import jax

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")
# Every test compiles something new, and runs it once or twice; so do scripts that tests start.
# XLA's older emitters, in one part, take half the time; a later version may not have these flags.
jax.config.update("jax_disable_most_optimizations", True)
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
if jax.__version_info__ < (0, 11):
    quick = "--xla_cpu_use_fusion_emitters=false --xla_cpu_parallel_codegen_split_count=1"
    os.environ["XLA_FLAGS"] = f"{quick} {os.environ.get('XLA_FLAGS', '')}".strip()

# Compilation makes the first example slow: a deadline would measure the compiler.
hypothesis.settings.register_profile("straw", deadline=None, max_examples=20, derandomize=True)
hypothesis.settings.load_profile("straw")

# What a shell starts in the background ignores Ctrl-C, and under nohup a hangup, and so would the
# scripts that tests start and then stop.
signal.signal(signal.SIGINT, signal.default_int_handler)
if hasattr(signal, "SIGHUP"):
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
