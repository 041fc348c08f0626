import subprocess
import sys
from pathlib import Path

import jax


def test_the_benchmark_refuses_to_time_an_interpreter():
    script = Path(__file__).parents[2] / "benchmarks" / "fused.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=False)
    if jax.default_backend() == "cpu":
        assert done.returncode == 2
        assert done.stderr.startswith("fused.py: expected a GPU or TPU, got cpu")
