import json
import subprocess
import sys
from pathlib import Path

import pytest
import scripts

pytest.importorskip("libtpu", reason='needs pip install "jax[tpu]"')


@pytest.mark.slow
def test_step_and_prediction_compile_for_a_tpu():
    script = Path(scripts.ROOT) / "benchmarks" / "tpu.py"
    words = [sys.executable, script, "--model", "compact", "--rank", "2", "--batch", "8", "16"]
    # The tests' own flags are a CPU's: libtpu ends the process.
    plain = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    environment = scripts.environment(scripts.EXPERIMENTS, **plain)
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    small, large = (json.loads(line) for line in found.stdout.splitlines())
    assert (small["batch"], large["batch"]) == (8, 16)
    for work in ("training", "prediction"):
        assert large[work]["gflop"] > 1.5 * small[work]["gflop"] > 0
        assert large[work]["memory_mb"] > large[work]["parameters_mb"] > 0
    assert small["training"]["parameters_mb"] > 2 * small["prediction"]["parameters_mb"]  # Adam
