"""The benchmark of a language model's adapters, with a tiny random model and without PyTorch."""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest

from straw_experiments.smollm.model import Llama, LlamaConfig

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
# A script's module, not a package's.
import adapters

sys.path.pop(0)

CONFIG = LlamaConfig(30, width=8, layers=2, heads=2, kv_heads=1, head=4, mlp=8)
SIZES = adapters.Sizes(batch=4, adapters=2, rank=2, tokens=adapters.PROMPT, new=2)


@pytest.fixture(scope="module")
def inputs():
    params = jax.jit(Llama(CONFIG).init)(jax.random.key(0), jnp.ones((1, 2), int))["params"]
    params["embedding"] *= 20
    return adapters.make_inputs(CONFIG, params, SIZES, range(7))


def test_wrong_ways_are_found(inputs, monkeypatch):
    right = adapters.make_way

    def make_way(name, inputs, *rest):
        if name == "merged":
            name, inputs = "index", inputs._replace(ids=1 - inputs.ids)
        return right(name, inputs, *rest)

    monkeypatch.setattr(adapters, "make_way", make_way)
    with pytest.raises(ValueError, match="merged, an adapter after the other to equal"):
        adapters.compare(inputs, SIZES, ["merged"], "not there")


@pytest.mark.slow
def test_a_row_of_the_table(inputs):
    adapters.compare(inputs, SIZES, ["merged", "vmap"], "not there")
    ways = ["base", "index", "peft"]
    found = adapters.measure_row(
        inputs, SIZES, "generation", ways=ways, peft="not there", repeats=1
    )
    assert found.pop("peft") == {"reason": "not there"}
    for name, row in found.items():
        assert row["tokens_per_second"] == SIZES.batch * SIZES.new / min(row["seconds"])
        assert row["memory"] > sum(leaf.nbytes for leaf in jax.tree.leaves(inputs.params)), name
    lines = adapters.table({**found, "peft": {"reason": "not there"}}).splitlines()
    assert len(lines) == 1 + len(ways)
    assert lines[-1] == "PEFT, `adapter_names`: not there"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--batches", "3", "--adapters", "2"], "expected a divisor of a batch"),
        (["--weights", "nothing.gguf"], "nothing.gguf is none"),
    ],
)
def test_bad_lines(words, message, capsys, tmp_path):
    with pytest.raises(SystemExit) as error:
        adapters.parse([*words, "--out", str(tmp_path / "out.json")])
    assert error.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())
