"""Adapters of PEFT, beside `W + scaling * (lora_B @ lora_A)` in NumPy."""

import importlib.util
import json
import math
import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from reference import assert_close, random_array

from straw_jax import (
    DoRA,
    Factors,
    Gain,
    LowRank,
    factor_spec,
    load_peft,
    materialize,
    save_peft,
)
from straw_jax.factors import named_leaves
from straw_jax.kinds import Decomposed
from straw_jax.lift import take

stored = pytest.importorskip("safetensors.numpy")

PREFIX = "base_model.model."
CONFIG = {"peft_type": "LORA", "r": 2, "lora_alpha": 3, "target_modules": ["q"]}


def write(folder, tensors, **config):
    """An adapter as PEFT writes it, with its tensors by name without prefix."""
    (folder / "adapter_config.json").write_text(json.dumps(CONFIG | config), encoding="utf-8")
    tensors = {f"{PREFIX}{name}": tensor for name, tensor in tensors.items()}
    stored.save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def lora(name="q", rank=2, inputs=3, outputs=4, window=(), dtype="float32", **others):
    return {
        f"{name}.lora_A.weight": random_array(1, (rank, inputs, *window), dtype),
        f"{name}.lora_B.weight": random_array(2, (outputs, rank, *(1 for _ in window)), dtype),
        **{f"{name}.{part}": tensor for part, tensor in others.items()},
    }


def delta(tensors, name="q"):
    """PEFT's change of a layer's weight `[out, in, *window]`, without the scaling."""
    A, B = (np.float64(tensors[f"{name}.lora_{letter}.weight"]) for letter in "AB")
    return (B.reshape(len(B), -1) @ A.reshape(len(A), -1)).reshape(len(B), *A.shape[1:])


def ours(weight):
    """A weight of PyTorch's, `[out, in, *window]`, as a kernel `[*window, in, out]`."""
    return np.moveaxis(weight, (0, 1), (-1, -2))


def loaded(folder, params, paths=None):
    """The loaded adapter's weights, by path."""
    paths = paths or {f"{PREFIX}q": "kernel"}
    return named_leaves(materialize(params, load_peft(folder, paths, params)))


def read(folder):
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    return config, stored.load_file(folder / "adapter_model.safetensors")


@pytest.mark.parametrize(("inputs", "outputs"), [(3, 4), (4, 4)])
@pytest.mark.parametrize(
    ("config", "scaling"),
    [
        ({}, 3 / 2),
        ({"use_rslora": True}, 3 / 2**0.5),
        ({"lora_alpha": 2}, 1),
        ({"fan_in_fan_out": True, "lora_dropout": 0.1, "peft_version": "0.18.0"}, 3 / 2),
    ],
)
def test_linear_layers(tmp_path, inputs, outputs, config, scaling):
    """Also square ones, whose factors only their names tell apart."""
    tensors = lora(inputs=inputs, outputs=outputs)
    W = random_array(0, (inputs, outputs))
    got = loaded(write(tmp_path, tensors, **config), {"kernel": W})["kernel"]
    assert_close(got, W + scaling * delta(tensors).T, 1e-6)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_dtypes_of_the_file_are_kept(tmp_path, dtype):
    tensors = lora(dtype=dtype)
    shape = jax.ShapeDtypeStruct((3, 4), jnp.float32)
    factors = load_peft(write(tmp_path, tensors), {f"{PREFIX}q": "kernel"}, {"kernel": shape})
    assert {str(array.dtype) for array in factors["kernel"]} == {dtype}
    want = np.asarray(1.5 * np.float32(tensors["q.lora_B.weight"].T), jnp.dtype(dtype))
    np.testing.assert_array_equal(np.asarray(factors["kernel"].A), want)


def test_patterns_of_ranks_and_alphas(tmp_path):
    """As in PEFT: the first pattern that matches, from a dot to the end."""
    tensors = lora("enc.q", 1) | lora("q") | lora("enc.v", 4)
    config = {"rank_pattern": {"enc.q": 1, "v": 4}, "alpha_pattern": {r"^q": 5, r"enc\.\w": 7}}
    params = {name: {"kernel": random_array(0, (3, 4))} for name in ("q", "enc.q", "enc.v")}
    got = loaded(
        write(tmp_path, tensors, **config), params, lambda name: f"{name[len(PREFIX) :]}/kernel"
    )
    for name, scaling in {"q": 5 / 2, "enc.q": 7 / 1, "enc.v": 7 / 4}.items():
        want = params[name]["kernel"] + scaling * delta(tensors, name).T
        assert_close(got[f"{name}/kernel"], want, 1e-6)


@pytest.mark.parametrize("window", [(3,), (2, 3)])
def test_convolutions(tmp_path, window):
    tensors = lora(inputs=5, window=window)
    W = random_array(0, (*window, 5, 4))
    got = loaded(write(tmp_path, tensors), {"kernel": W})["kernel"]
    assert_close(got, W + 1.5 * ours(delta(tensors)), 1e-6)


def test_kernels_of_several_axes(tmp_path):
    """Attention's, in and out, of which one is square as a matrix."""
    tensors = lora("q", inputs=6, outputs=6) | lora("o", inputs=6, outputs=5)
    params = {"query": random_array(0, (6, 2, 3)), "out": random_array(1, (2, 3, 5))}
    folder = write(tmp_path, tensors)
    got = loaded(folder, params, {f"{PREFIX}q": "query", f"{PREFIX}o": "out"})
    assert_close(got["query"], params["query"] + 1.5 * delta(tensors).T.reshape(6, 2, 3), 1e-6)
    assert_close(got["out"], params["out"] + 1.5 * delta(tensors, "o").T.reshape(2, 3, 5), 1e-6)


PATHS = {f"{PREFIX}layers.{{}}.q": "layers/query"}


def test_stacked_layers_also_of_several_ranks(tmp_path):
    tensors = {}
    for layer, rank in enumerate([2, 1, 3]):
        tensors |= lora(f"layers.{layer}.q", rank, 4, 6)
    ranks = {"layers.1.q": 1, "layers.2.q": 3}
    W = random_array(0, (3, 4, 2, 3))
    folder = write(tmp_path, tensors, rank_pattern=ranks)
    got = loaded(folder, {"layers": {"query": W}}, PATHS)["layers/query"]
    for layer, rank in enumerate([2, 1, 3]):
        change = 3 / rank * delta(tensors, f"layers.{layer}.q").T
        assert_close(got[layer], W[layer] + change.reshape(4, 2, 3), 1e-6)
    explicit = {f"{PREFIX}layers.{layer}.q": ("layers/query", layer) for layer in range(3)}
    again = loaded(folder, {"layers": {"query": W}}, explicit)["layers/query"]
    np.testing.assert_array_equal(again, got)


@pytest.mark.parametrize("window", [(), (2, 3)])
@pytest.mark.parametrize("suffix", ["", ".weight"])
def test_dora(tmp_path, window, suffix):
    """Magnitudes are norms in the file, and relative to the base here."""
    magnitudes = 1 + random_array(3, (4,)) ** 2
    shape = (1, 4, 1, 1) if window else (4,)
    tensors = lora(window=window) | {f"q.lora_magnitude_vector{suffix}": magnitudes.reshape(shape)}
    W = random_array(0, (*window, 3, 4))
    got = loaded(write(tmp_path, tensors, use_dora=True), {"kernel": W})["kernel"]
    V = W + 1.5 * ours(delta(tensors))
    norms = np.sqrt(np.sum(np.square(V), axis=tuple(range(V.ndim - 1))))
    assert_close(got, magnitudes * V / norms, 1e-5)


PARAMS = {
    "conv": {"kernel": random_array(0, (2, 3, 5, 4))},
    "layers": {"query": random_array(1, (3, 4, 2, 3)), "out": random_array(2, (3, 6, 4))},
    "layers_0": {"kernel": random_array(3, (4, 4))},
    "layers_12": {"kernel": random_array(4, (4, 4))},
}
NAMES = {
    f"{PREFIX}conv": "conv/kernel",
    f"{PREFIX}blocks.{{}}.q_proj": "layers/query",
    f"{PREFIX}blocks.{{}}.o_proj": "layers/out",
    f"{PREFIX}layers.{{}}": "layers_{}/kernel",
}


def factors_of(kind, ranks, dtype="float32"):
    """Of one sample, taken from a batch."""
    axes = {"layers/query": "srcc", "layers/out": "src"}
    axes = {path: letters for path, letters in axes.items() if path in ranks}
    spec = factor_spec(PARAMS, {path: kind(rank) for path, rank in ranks.items()}, axes=axes)
    return take(PARAMS, spec.unpack(random_array(5, (2, spec.size), dtype)), 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_what_is_saved_is_loaded_bit_by_bit(tmp_path, dtype, scale):
    ranks = {"conv/kernel": 3, "layers/query": 2, "layers/out": 2, "layers_0/kernel": 1,
             "layers_12/kernel": 2}  # fmt: skip
    factors = factors_of(LowRank, ranks, dtype)
    save_peft(
        tmp_path / "new", factors, NAMES, PARAMS, scale=scale, convolutions=["conv/*"],
        base_model="org/model", task_type="CAUSAL_LM",
    )  # fmt: skip
    again = load_peft(tmp_path / "new", NAMES, PARAMS)
    assert list(again) == list(named_leaves(PARAMS))
    for path, (B, A) in again.items():
        np.testing.assert_array_equal(B, factors[path].B)
        np.testing.assert_array_equal(A, scale * np.float32(factors[path].A))
        assert again[path].axes == factors[path].reading(named_leaves(PARAMS)[path].shape)
    config, tensors = read(tmp_path / "new")
    assert config["r"] == 3
    assert config["lora_alpha"] == 3 * scale
    assert config["rank_pattern"][r"^blocks\.1\.q_proj"] == 2
    assert config["alpha_pattern"][r"^layers\.0"] == scale
    assert "conv" in config["target_modules"]
    assert config["base_model_name_or_path"] == "org/model"
    assert config["task_type"] == "CAUSAL_LM"
    shapes = {name: tensors[f"{PREFIX}{name}.weight"].shape for name in
              ("conv.lora_A", "conv.lora_B", "blocks.2.q_proj.lora_A", "blocks.2.q_proj.lora_B",
               "layers.12.lora_A")}  # fmt: skip
    assert [*shapes.values()] == [(3, 5, 2, 3), (4, 3, 1, 1), (2, 4), (6, 2), (2, 4)]


def test_saved_tensors_make_the_weights(tmp_path):
    """Beside `materialize`, with PEFT's formula in NumPy."""
    factors = factors_of(LowRank, {"conv/kernel": 2, "layers/out": 2, "layers_12/kernel": 2})
    save_peft(tmp_path, factors, NAMES, PARAMS, scale=0.3, convolutions=["conv/kernel"])
    want = named_leaves(materialize(PARAMS, factors, scale=0.3))
    config, tensors = read(tmp_path)
    scaling = config["lora_alpha"] / config["r"]
    assert not config["rank_pattern"]
    tensors = {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
    base = named_leaves(PARAMS)
    for name, path, layer in [
        ("conv", "conv/kernel", ...), ("layers.12", "layers_12/kernel", ...),
        *((f"blocks.{i}.o_proj", "layers/out", i) for i in range(3)),
    ]:  # fmt: skip
        got = base[path][layer] + scaling * ours(delta(tensors, name))
        assert_close(got, want[path][layer], 1e-5)


@given(
    st.sampled_from([(), (1,), (3,)]),
    st.sampled_from([(), (1,), (3,), (2, 3)]),
    st.integers(1, 5),
    st.integers(1, 5),
    st.integers(1, 6),
    st.booleans(),
)
def test_any_shape_is_loaded_as_it_was_saved(layers, window, inputs, outputs, rank, dora):
    """And its tensors are those of PEFT's formula."""
    shape = (*layers, *window, inputs, outputs)
    count, axes = math.prod(layers), "s" * len(layers) + "r" * (len(window) + 1) + "c"
    B = random_array(1, (count * math.prod(window) * inputs, rank))
    A = random_array(2, (rank, count * outputs))
    gains = random_array(3, (*layers, outputs))
    update = Decomposed(B, A, gains, axes) if dora else Factors(B, A, axes)
    params = {"kernel": random_array(0, shape)}
    paths = {f"{PREFIX}q.{{}}": "kernel"} if layers else {f"{PREFIX}q": "kernel"}
    with tempfile.TemporaryDirectory() as folder:
        options = {"convolutions": ["kernel"]} if window else {}
        save_peft(folder, {"kernel": update}, paths, params, **options)
        again = load_peft(folder, paths, params)["kernel"]
        _, tensors = read(Path(folder))
    np.testing.assert_array_equal(again.B, B)
    np.testing.assert_array_equal(again.A, A)
    if dora:
        assert_close(again.gains, gains, 1e-6)
    for layer in range(count):
        name = f"{PREFIX}q.{layer}" if layers else f"{PREFIX}q"
        own = B.reshape(count, -1, rank)[layer] @ A.reshape(rank, count, -1)[:, layer]
        want = own.reshape(*window, inputs, outputs)
        assert_close(ours(delta(tensors, name)), want, 1e-5)


def test_dora_is_saved_with_norms(tmp_path):
    factors = factors_of(DoRA, {"conv/kernel": 2, "layers/query": 2, "layers_0/kernel": 2})
    save_peft(tmp_path, factors, NAMES, PARAMS, convolutions=["conv/*"])
    config, tensors = read(tmp_path)
    assert config["use_dora"] is True
    assert tensors[f"{PREFIX}conv.lora_magnitude_vector"].shape == (1, 4, 1, 1)
    norms = np.linalg.norm(PARAMS["layers"]["query"][2].reshape(4, 6), axis=0)
    got = tensors[f"{PREFIX}blocks.2.q_proj.lora_magnitude_vector"]
    assert_close(got, norms * np.asarray(factors["layers/query"].gains)[2].reshape(-1), 1e-6)
    again = load_peft(tmp_path, NAMES, PARAMS)
    for path, update in again.items():
        np.testing.assert_array_equal(update.B, factors[path].B)
        np.testing.assert_array_equal(update.A, factors[path].A)
        assert_close(update.gains, factors[path].gains, 1e-6)


def test_a_column_of_zeros_stays_one(tmp_path):
    W = random_array(0, (3, 4))
    W[:, 1] = 0
    zeros = {"q.lora_B.weight": np.zeros((4, 2), np.float32)}
    norms = np.linalg.norm(W, axis=0)
    folder = write(tmp_path, lora(lora_magnitude_vector=norms) | zeros, use_dora=True)
    assert_close(loaded(folder, {"kernel": W})["kernel"], W, 1e-6)
    write(tmp_path, lora(lora_magnitude_vector=norms + 1), use_dora=True)
    with pytest.raises(ValueError, match="without columns of zeros"):
        loaded(folder, {"kernel": W})


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"peft_type": "IA3"}, "expected peft_type 'LORA'"),
        ({"lora_bias": True}, "factors alone, got {'lora_bias': True}"),
        ({"modules_to_save": ["head"]}, r"got {'modules_to_save': \['head'\]}"),
        ({"use_qalora": True}, "got {'use_qalora': True}"),
        ({"layer_replication": [[0, 1]]}, "got {'layer_replication'"),
        ({"a_setting_of_tomorrow": 1}, "got {'a_setting_of_tomorrow': 1}"),
        ({"bias": "lora_only"}, "expected bias 'none'"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights 'pissa_niter_4'"),
        ({"r": None}, "expected r in .* to be a number, got None"),
        ({"lora_alpha": "8"}, "expected lora_alpha in .* got '8'"),
        ({"rank_pattern": {"q": "8"}}, "expected rank_pattern in .* to map names to numbers"),
        ({"alpha_pattern": {"(": 8}}, "alpha_pattern in .* to have names or regular"),
        ({"r": 3}, f"module {PREFIX}q of rank 3, as r and rank_pattern say, got 2"),
        ({"use_dora": True}, r"expected \['lora_A', 'lora_B', 'magnitude'\] for"),
    ],
)
def test_settings_that_are_refused(tmp_path, config, message):
    with pytest.raises(ValueError, match=message):
        loaded(write(tmp_path, lora(), **config), {"kernel": random_array(0, (3, 4))})


ARRAY = np.ones((4, 3), np.float32)


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        ({}, "tensors that end in .*, got none"),
        (lora() | {"head.weight": ARRAY}, r"tensors that end in .*, got \['.*head.weight'\]"),
        (lora() | {"q.lora_B.bias": ARRAY}, r"got \['.*q.lora_B.bias'\]. Biases"),
        (lora() | {"e.lora_embedding_A": ARRAY}, "embeddings and whole modules are not"),
        ({"q.lora_A.weight": ARRAY}, r"expected \['lora_A', 'lora_B'\] .*, got \['lora_A'\]"),
        (lora(lora_magnitude_vector=ARRAY[:, 0]), r"use_dora is False\), got \[.*'magnitude'\]"),
        (lora() | {"q.lora_A.weight": ARRAY}, "groups are not supported"),
        (lora() | {"q.lora_A.weight": np.ones((2, 3), np.int8)}, "expected tensors of F64, .* I8"),
        (lora(inputs=5), r"a linear layer from 5 to 4, to fit kernel, got .* shape \[3, 4\]"),
        (lora(window=(1,)), r"a convolution over \[1\] from 3 to 4, to fit kernel"),
        (lora("k"), f"got none for {PREFIX}k. Add it to paths"),
        (lora() | lora("other"), "one module for each leaf, got .*other and .*q for kernel"),
        (lora("lost"), r"to be one of \['bias', 'kernel'\], got 'no/kernel'"),
        (lora("b"), r"to fit bias, got a kernel of shape \[4\]"),
    ],
)
def test_tensors_that_are_refused(tmp_path, tensors, message):
    params = {"kernel": random_array(0, (3, 4)), "bias": np.zeros(4, np.float32)}
    names = {"q": "kernel", "other": "kernel", "lost": "no/kernel", "b": "bias"}
    paths = {f"{PREFIX}{name}": path for name, path in names.items()}
    with pytest.raises(ValueError, match=message):
        load_peft(write(tmp_path, tensors), paths, params)


@pytest.mark.parametrize(
    ("layers", "paths", "message"),
    [
        ([0, 2], PATHS, r"each of the 3 layers of layers/query, got none for \[1\]"),
        ([0, 1, 2, 3], PATHS, r"none for \[\] and unknown \[3\]"),
        ([0, 1], {f"{PREFIX}layers.0.q": "layers/query", **PATHS}, "with or without the number"),
        ([0], {f"{PREFIX}layers.{{}}.q": "layers_{}_{}"}, "a path with as many '{}', or one less"),
        ([0], {f"{PREFIX}layers.0.q": ("layers/query", "0")}, r"or \(path, layer\), got"),
        ([0], lambda name: 0, "paths to give a path or .path, layer., got 0 for"),
        ([0], lambda name: None, "expected a path for each module of the adapter, got none"),
        ([0], ["layers/query"], "expected paths to be a dict"),
    ],
)
def test_paths_that_are_refused(tmp_path, layers, paths, message):
    tensors = {}
    for layer in layers:
        tensors |= lora(f"layers.{layer}.q", inputs=4, outputs=6)
    params = {"layers": {"query": random_array(0, (3, 4, 2, 3))}}
    with pytest.raises(ValueError, match=message):
        load_peft(write(tmp_path, tensors), paths, params)


def test_files_that_are_missing_or_damaged(tmp_path):
    params, paths = {"kernel": random_array(0, (3, 4))}, {f"{PREFIX}q": "kernel"}
    with pytest.raises(ValueError, match=r"expected a folder with adapter_config\.json and"):
        load_peft(tmp_path / "none", paths, params)
    write(tmp_path, lora())
    weights, config = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    weights.write_bytes(weights.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"safetensors cannot be read \(.*\). Copy or save"):
        load_peft(tmp_path, paths, params)
    weights.rename(tmp_path / "adapter_model.bin")
    with pytest.raises(ValueError, match=r"got no .* Load adapter_model\.bin in PEFT"):
        load_peft(tmp_path, paths, params)
    config.write_text("{", encoding="utf-8")
    with pytest.raises(ValueError, match=r"adapter_config\.json cannot be read"):
        load_peft(tmp_path, paths, params)
    config.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="to hold a JSON object"):
        load_peft(tmp_path, paths, params)


def test_dora_needs_weights(tmp_path):
    magnitudes = np.ones(4, np.float32)
    folder = write(tmp_path, lora(lora_magnitude_vector=magnitudes), use_dora=True)
    for leaf in (jax.ShapeDtypeStruct((3, 4), jnp.float32), np.ones((3, 4), np.int8)):
        with pytest.raises(ValueError, match="floating weights of kernel, for the norms of DoRA"):
            load_peft(folder, {f"{PREFIX}q": "kernel"}, {"kernel": leaf})


PAIR = Factors(ARRAY[:, :2], ARRAY[:2])
ONE = {f"{PREFIX}q": "a", f"{PREFIX}v": "b"}


@pytest.mark.parametrize(
    ("factors", "paths", "options", "message"),
    [
        ({}, ONE, {}, "at least one leaf, got none"),
        (
            {"c": PAIR},
            ONE,
            {},
            r"for leaves of the parameters, .*, got also \['c'\]",
        ),
        ({"a": ARRAY}, ONE, {}, "Factors or Decomposed for a, got ndarray"),
        ({"a": (PAIR, PAIR)}, ONE, {}, "Factors or Decomposed for a, got tuple"),
        ({"a": PAIR, "b": Decomposed(*PAIR, ARRAY[0])}, ONE, {}, "all leaves with DoRA or none"),
        ({"a": Factors(ARRAY[None, :, :2], ARRAY[:2])}, ONE, {}, "one sample that fit a, .*take"),
        ({"a": Factors(PAIR.B, PAIR.B)}, ONE, {}, "that fit a, of shape .4, 3., as"),
        ({"a": Factors(*PAIR, axes="src")}, ONE, {}, "read as 'src'"),
        ({"a": Factors(PAIR.B, PAIR.A.astype(np.int8))}, ONE, {}, "got A of a of int8"),
        ({"d": Factors(np.ones((16, 2)), np.ones((2, 12)), "ssrc")}, ONE, {}, "one stacked axis"),
        ({"b": PAIR}, {f"{PREFIX}q": "a"}, {}, "got none in paths for b"),
        ({"a": PAIR}, {"q": "a"}, {}, "names of modules to begin with 'base_model.model.'"),
        ({"a": PAIR, "b": PAIR}, {f"{PREFIX}q": "a", **{f"{PREFIX}{{}}": "a_{}"}}, {}, "for b"),
        ({"a": PAIR}, {f"{PREFIX}{{}}": "a_{}", f"{PREFIX}3": "a"}, {}, "lead back to their leaf"),
        ({"a": PAIR}, lambda name: "a", {}, "expected paths to be a dict"),
        ({"a": PAIR}, ONE, {"convolutions": "a"}, r"several patterns, got 'a'. One is \['a'\]"),
        ({"a": PAIR}, ONE, {"convolutions": ["b"]}, "'b' of convolutions matches none of"),
        ({"a": PAIR}, ONE, {"convolutions": ["a"]}, r"convolution a to be \[\*window, in, out\]"),
        ({"a": PAIR}, ONE, {"scale": math.inf}, "expected scale to be a finite number"),
    ],
)
def test_factors_that_are_not_saved(tmp_path, factors, paths, options, message):
    params = {"a": ARRAY, "b": ARRAY, "d": np.ones((2, 2, 4, 3))}
    with pytest.raises(ValueError, match=message):
        save_peft(tmp_path, factors, paths, params, **options)
    assert not list(tmp_path.iterdir())


def test_other_kinds_are_not_saved(tmp_path):
    spec = factor_spec({"a": ARRAY}, {"a": Gain()})
    factors = spec.unpack(random_array(0, (spec.size,)))
    with pytest.raises(ValueError, match=r"got Gains\. PEFT's LoRA has no other kinds"):
        save_peft(tmp_path, factors, ONE, {"a": ARRAY})


def test_a_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "safetensors", None)
    monkeypatch.setitem(__import__("sys").modules, "safetensors.numpy", None)
    for call in (lambda: load_peft(tmp_path, ONE, {}), lambda: save_peft(tmp_path, {}, ONE, {})):
        with pytest.raises(ImportError, match=r"pip install 'straw_jax\[peft\]'"):
            call()


def network(torch):
    class Net(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 4, (2, 3), bias=False)
            self.layers = torch.nn.ModuleList(torch.nn.Linear(4, 4, bias=False) for _ in "12")
            self.head = torch.nn.Linear(4, 5, bias=False)

        def forward(self, x):
            x = torch.relu(self.conv(x)).mean((2, 3))
            for layer in self.layers:
                x = torch.tanh(layer(x))
            return self.head(x)

    return Net()


def ours_of(net):
    """The network's parameters, its layers stacked."""
    kernels = {name: ours(tensor.numpy()) for name, tensor in net.state_dict().items()}
    return {
        "conv": {"kernel": kernels["conv.weight"]},
        "layers": {"kernel": np.stack([kernels[f"layers.{i}.weight"] for i in range(2)])},
        "head": {"kernel": kernels["head.weight"]},
    }


def our_network(params, x):
    layout = ("NHWC", "HWIO", "NHWC")
    conv, layers, head = (params[name]["kernel"] for name in ("conv", "layers", "head"))
    x = jax.lax.conv_general_dilated(
        x, conv, (1, 1), "VALID", dimension_numbers=layout, precision="highest"
    )
    x = jnp.maximum(x, 0).mean((1, 2))
    for layer in layers:
        x = jnp.tanh(x @ layer)
    return x @ head


NET_PATHS = {
    f"{PREFIX}conv": "conv/kernel",
    f"{PREFIX}layers.{{}}": "layers/kernel",
    f"{PREFIX}head": "head/kernel",
}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("use_dora", [False, True])
def test_peft_and_we_compute_the_same_logits(tmp_path, use_dora):
    """With an adapter of ours, and with one of PEFT's."""
    if not all(map(importlib.util.find_spec, ("torch", "peft"))):
        pytest.skip("PEFT is not installed")
    import peft
    import torch

    x = random_array(0, (6, 5, 7, 3))
    images = torch.tensor(np.moveaxis(x, -1, 1).copy())
    net = network(torch)
    params, state = ours_of(net), net.state_dict()

    def logits_of_both(adapted, folder):
        with torch.no_grad():
            theirs = adapted.eval()(images).numpy()
        weights = materialize(params, load_peft(folder, NET_PATHS, params))
        return theirs, jax.jit(our_network)(weights, x)

    kind = DoRA if use_dora else LowRank
    ranks = {"conv/kernel": kind(3), "layers/kernel": kind(2), "head/kernel": kind(1)}
    spec = factor_spec(params, ranks, axes={"layers/*": "src"})
    factors = spec.unpack(random_array(7, (spec.size,)))
    save_peft(tmp_path / "ours", factors, NET_PATHS, params, scale=0.7, convolutions=["conv/*"])
    adapted = peft.PeftModel.from_pretrained(net, tmp_path / "ours")
    theirs, ours_again = logits_of_both(adapted, tmp_path / "ours")
    weights = materialize(params, factors, scale=0.7)
    assert_close(jax.jit(our_network)(weights, x), theirs, 1e-5)
    assert_close(ours_again, theirs, 1e-5)

    net = network(torch)
    net.load_state_dict(state)
    config = peft.LoraConfig(
        r=2, lora_alpha=3, target_modules=["conv", "layers.0", "layers.1", "head"],
        rank_pattern={"head": 3, "^layers.1": 1}, alpha_pattern={"layers.0": 5},
        use_rslora=True, use_dora=use_dora, init_lora_weights=False,
    )  # fmt: skip
    adapted = peft.get_peft_model(net, config)
    for name, tensor in adapted.named_parameters():
        if "magnitude" in name:
            tensor.data *= 1.3
    adapted.save_pretrained(tmp_path / "theirs")
    theirs, ours_loaded = logits_of_both(adapted, tmp_path / "theirs")
    assert_close(ours_loaded, theirs, 1e-5)
