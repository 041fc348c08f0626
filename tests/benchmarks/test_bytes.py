"""The table of bytes: the least equals the floor, and a program is read as it stands."""

import subprocess
import sys
from pathlib import Path

import pytest
import scripts

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
# Scripts' modules, not a package's.
import bytes as traffic
import floor

sys.path.pop(0)

# As XLA writes it: layouts, a fusion that takes a slice of one operand, and one with two results.
PROGRAM = """\
HloModule jit_train_step

%sliced (param_0: f32[8,4], param_1: f32[2]) -> f32[2] {
  %param_0 = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %flat = f32[32]{0} bitcast(%param_0)
  %some = f32[2]{0} slice(%flat), slice={[0:2]}
  %param_1 = f32[2]{0} parameter(1)
  ROOT %add.1 = f32[2]{0} add(%some, %param_1), metadata={op_name="jit(train_step)/jvp()/add"}
}

%both (param_0: f32[8,4]) -> (bf16[8,4], pred[]) {
  %param_0 = f32[8,4]{1,0} parameter(0)
  %small = bf16[8,4]{1,0} convert(%param_0)
  %yes = pred[] constant(true)
  ROOT %pair = (bf16[8,4]{1,0}, pred[]) tuple(%small, %yes)
}

ENTRY %main (x: f32[8,4], y: f32[2]) -> (bf16[8,4], f32[2]) {
  %x = f32[8,4]{1,0:T(8,128)S(1)} parameter(0)
  %y = f32[2]{0} parameter(1)
  %part = f32[2]{0} fusion(%x, /*index=1*/%y), kind=kLoop, calls=%sliced
  %two = (bf16[8,4]{1,0:T(8,128)(2,1)}, pred[]) fusion(%x), kind=kLoop, calls=%both, \
metadata={op_name="jit(train_step)/transpose(jvp(vmap(CNN)))/conv2/max" stack_frame_id=3}
  %other = f32[8,4]{0,1} copy(%x)
  %first = bf16[8,4]{1,0} get-tuple-element(%two), index=0
  %after = f32[2]{0} add(%part, %y), metadata={op_name="jit(train_step)/add"}
  ROOT %out = (bf16[8,4]{1,0}, f32[2]{0}) tuple(%first, %after)
}
"""


def test_bytes_of_a_program_by_hand():
    assert dict(traffic.moved(PROGRAM)) == {
        ("loss", "forward"): 4 * (2 + 2 + 2),  # its name stands inside
        ("conv2", "backward"): 4 * 32 + 2 * 32 + 1,
        ("unnamed", "update"): 2 * 4 * 32,
        ("optimiser", "update"): 4 * (2 + 2 + 2),
    }


@pytest.mark.parametrize(("batch", "rank"), [(1, 1), (128, 16)])
def test_the_least_of_all_parts_is_the_floor(batch, rank):
    phases = floor.phases("training", batch, rank, "none")
    assert traffic.least(batch, rank).total() == sum(phase.bytes for phase in phases)


@pytest.mark.slow
def test_the_compiled_step_moves_the_least_at_least():
    words = [sys.executable, traffic.__file__, "--batch", "2", "--rank", "1"]
    plain = {"XLA_FLAGS": "", "JAX_DISABLE_MOST_OPTIMIZATIONS": "0"}
    environment = scripts.environment(scripts.EXPERIMENTS, **plain)
    found = subprocess.run(words, env=environment, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stderr
    _, _, *lines = (line.strip("| ").split(" | ") for line in found.stdout.splitlines())
    rows = {name: [float(cell) for cell in cells[:4]] for name, *cells in lines}
    assert list(rows) == [*traffic.PARTS, "all"]
    for name in ("encoder", "fc1", "optimiser", "all"):
        least, does, *_ = rows[name]
        # XLA may name a fusion after another part, here a twentieth of a layer's.
        assert 0.95 * least < does < 5 * least, name
    assert rows["all"][1] > rows["all"][0]
    assert rows["unnamed"][1] < 0.1 * rows["all"][1]
