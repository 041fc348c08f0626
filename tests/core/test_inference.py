import hashlib
import json
import os
import subprocess
import sys
import tracemalloc
import zipfile
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from reference import assert_close, random_array

from straw_jax import (
    CNN,
    DoRA,
    Factors,
    Gain,
    LowRank,
    Mixture,
    Posed,
    SharedLowRank,
    factor_spec,
    load_exported,
    make_straw,
    modulate,
    predictor,
    quantise,
    save_exported,
)

ROOT = Path(__file__).parents[2]
COUNTS = (0, 1, 2, 7, 33)


def dense(params, x):
    """`log` makes NaN of zeros: padding has to be real samples."""
    return jnp.log(x**2) @ params["kernel"] + params["bias"][None]


PARAMS = {"kernel": random_array(0, (3, 4)), "bias": random_array(1, (4,))}
X = random_array(2, (33, 3))


def saved(folder, apply=dense, params=PARAMS, sample=X, **options):
    pytest.importorskip("flatbuffers")
    path = folder / "model.zip"
    save_exported(path, apply, params, sample, **options)
    return path


def small_straw(base, **options):
    images = random_array(3, (33, 8, 8, 1))
    straw = make_straw(CNN(classes=5), images, rank=1, base=base, hidden=4, **options)
    shapes = jax.eval_shape(straw.init, jax.random.key(0))
    params = jax.tree.map(lambda p: 0.2 * random_array(p.size, p.shape), shapes)
    return straw, params, images


# predictor


@pytest.mark.accelerator
@pytest.mark.parametrize("n", COUNTS)
@pytest.mark.parametrize("library", [np, jnp])
def test_predictions_are_those_without_padding(n, library):
    x = library.asarray(np.asarray(X)[:n])
    with jax.debug_nans(True):
        y = predictor(dense, PARAMS, batch_sizes=(2, 8))(x)
    assert isinstance(y, jax.Array)
    assert_close(y, dense(PARAMS, jnp.asarray(x)), 1e-5)


def test_compiles_once_for_each_batch_size_that_is_needed():
    traced = []

    def apply(params, x):
        traced.append(x.shape[0])
        return dense(params, x)

    predict = predictor(apply, PARAMS, batch_sizes=(8, 1, 2))  # in any order
    for n, want in [(5, [8]), (7, [8]), (8, [8]), (2, [8, 2]), (17, [8, 2, 1])]:
        predict(np.asarray(X)[:n])
        assert traced == want
    for n in range(0, 34, 3):
        predict(X[:n])
    predictor(apply, jax.tree.map(jnp.zeros_like, PARAMS), batch_sizes=(2, 8))(X)
    assert traced == [8, 2, 1]


@pytest.mark.accelerator
def test_trees_of_inputs_and_outputs_and_keywords():
    def apply(params, x, *, context):
        y = x["a"] @ params["kernel"] + context
        return {"sum": y.sum(-1), "pair": (y, x["b"][0] > 0)}

    x = {"a": X, "b": [np.arange(33) - 16]}
    context = random_array(5, (33, 4))
    predict = predictor(apply, PARAMS, batch_sizes=(8,))
    for n in COUNTS:
        some, keyword = jax.tree.map(lambda leaf, n=n: leaf[:n], (x, context))
        got, want = predict(some, context=keyword), apply(PARAMS, some, context=keyword)
        assert jax.tree.structure(got) == jax.tree.structure(want)
        for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
            assert g.dtype == w.dtype
            assert_close(g, w, 1e-5)


@pytest.mark.accelerator
def test_predictor_is_a_function_to_jit_and_grad():
    def total(x):
        return predictor(dense, PARAMS, batch_sizes=(2, 8))(x).sum()

    assert_close(jax.jit(total)(X), dense(PARAMS, X).sum(), 1e-5)
    assert_close(jax.grad(total)(X), jax.grad(lambda x: dense(PARAMS, x).sum())(X), 1e-5)


def test_random_keys_as_inputs(tmp_path):
    def noise(params, x, *, keys):
        return x + jax.vmap(lambda key: jax.random.normal(key, (3,)))(keys)

    keys = jax.random.split(jax.random.key(0), 33)
    path = saved(tmp_path, noise, None, X, keys=keys)
    for predict in (predictor(noise, None, batch_sizes=(8,)), load_exported(path)):
        assert_close(predict(X, keys=keys), noise(None, X, keys=keys), 1e-5)
        assert predict(X[:0], keys=keys[:0]).shape == (0, 3)


def test_empty_batch_of_numbers_that_jax_narrows():
    assert predictor(dense, PARAMS)(np.zeros((0, 3))).shape == (0, 4)


def test_errors_of_predictor():
    for sizes in ((), (0, 2)):
        with pytest.raises(ValueError, match="expected positive batch_sizes"):
            predictor(dense, PARAMS, batch_sizes=sizes)
    predict = predictor(lambda params, x, **kwargs: x, PARAMS)
    with pytest.raises(ValueError, match=r"one batch size, got context: float32 \[2\], x: float32"):
        predict(X, context=jnp.ones(2))
    with pytest.raises(ValueError, match=r"one batch size, got x: float64 \[\]"):
        predict(1.0)
    with pytest.raises(ValueError, match="one batch size, got none"):
        predict({})
    with pytest.raises(
        ValueError, match=r"return arrays \[8, ...\] for 8 samples, got y: float32 "
    ):
        predictor(lambda params, x: x.sum(), PARAMS)(X[:7])


# save_exported, load_exported


@pytest.mark.accelerator
def test_saved_model_predicts_the_same(tmp_path):
    predict = load_exported(saved(tmp_path), batch_sizes=(2, 8))
    for n in COUNTS:
        got = predict(np.asarray(X)[:n])
        assert isinstance(got, jax.Array)
        assert_close(got, dense(PARAMS, X[:n]), 1e-5)
    assert_close(jax.jit(predict)(X), dense(PARAMS, X), 1e-5)


@pytest.mark.parametrize("base", ["none", "trained"])
@pytest.mark.parametrize("own_context", [False, True])
def test_straw_with_each_base(tmp_path, base, own_context):
    task = random_array(4, (33, 6))
    options = {"encoder": nn.Dense(8), "context": task} if own_context else {}
    straw, params, images = small_straw(base, **options)
    context = {"context": task} if own_context else {}
    path = saved(
        tmp_path, straw.apply, params, images[:1], **jax.tree.map(lambda a: a[:1], context)
    )
    predict = load_exported(path, batch_sizes=(8,))
    want = jax.jit(straw.apply)(params, images, **context)
    for n in COUNTS:
        some = jax.tree.map(lambda a, n=n: a[:n], context)
        assert_close(predict(images[:n], **some), want[:n], 1e-5)


MODEL_IS_ELSEWHERE = """
import sys
sys.modules["flax"] = None  # importing it fails
import numpy as np
from straw_jax.inference import load_exported
predict = load_exported(sys.argv[1])
np.save(sys.argv[2], np.asarray(predict(np.load(sys.argv[3]))))
"""


def test_loads_where_flax_is_not_installed(tmp_path):
    straw, params, images = small_straw("none")
    path = saved(tmp_path, straw.apply, params, images)
    np.save(tmp_path / "x.npy", images[:3])
    files = [path, tmp_path / "y.npy", tmp_path / "x.npy"]
    subprocess.run(
        [sys.executable, "-W", "error", "-c", MODEL_IS_ELSEWHERE, *files],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        check=True,
    )
    assert_close(np.load(tmp_path / "y.npy"), jax.jit(straw.apply)(params, images[:3]), 1e-5)


def test_dtypes_survive(tmp_path):
    params = {
        "bfloat16": random_array(0, (3, 4), "bfloat16"),
        "int4": jnp.arange(-8, 8, dtype=jnp.int4),
        "float8": jnp.asarray([0.5, -1.5], jnp.float8_e4m3fn),
        "bool": jnp.asarray([True, False]),
        "complex": jnp.asarray([1 + 2j], jnp.complex64),
        "host": np.arange(5, dtype=np.int8),
        "none": jnp.zeros((0, 2)),
        "weak": 0.5,  # multiplied with bfloat16 it stays bfloat16
    }

    def apply(params, x):
        def rows(leaf):
            return jnp.broadcast_to(leaf[None], (x.shape[0], *leaf.shape))

        return x @ params["bfloat16"] * params["weak"], jax.tree.map(
            rows, {name: leaf for name, leaf in params.items() if name != "weak"}
        )

    x = random_array(1, (2, 3), "bfloat16")
    got = load_exported(saved(tmp_path, apply, params, x))(x)
    want = jax.jit(apply)(jax.device_put(params), x)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert g.dtype == w.dtype
        assert np.array_equal(np.asarray(g), np.asarray(w))


def test_trees_as_inputs_and_outputs(tmp_path):
    def apply(params, x, *, mask):
        return {"y": (dense(params, x["a"]), x["b"][0]), "mask": ~mask}

    sample = {"a": X, "b": [jnp.arange(33)]}
    path = saved(tmp_path, apply, PARAMS, sample, mask=jnp.zeros(33, bool))
    x = {"a": X[:7], "b": (np.arange(7, dtype=np.int32),)}  # a tuple where a list was
    got = load_exported(path)(x, mask=np.ones(7, bool))
    assert_close(got["y"][0], dense(PARAMS, X[:7]), 1e-5)
    assert got["y"][1].tolist() == list(range(7))
    assert not got["mask"].any()


def test_parameters_are_of_any_tree_and_not_in_the_program(tmp_path):
    class Parameters(tuple):
        __slots__ = ()

    jax.tree_util.register_pytree_node(Parameters, lambda p: (tuple(p), None), lambda _, p: p)
    big = random_array(0, (3, 30_000))
    path = saved(tmp_path, lambda params, x: x @ params[0], Parameters([big]))
    with zipfile.ZipFile(path) as archive:
        assert len(archive.read("program")) < 10_000
        assert archive.read("parameters/0") == np.asarray(big).tobytes()
    assert_close(load_exported(path)(X), X @ big, 1e-5)


def test_header_says_what_is_in_the_file(tmp_path):
    with zipfile.ZipFile(saved(tmp_path, platforms=("cpu", "cuda"))) as archive:
        header = json.loads(archive.read("header.json"))
    assert header == {
        "format": "straw_jax exported model",
        "version": 2,
        "jax": jax.__version__,
        "platforms": ["cpu", "cuda"],
        "inputs": [{"name": "x", "dtype": "float32", "shape": ["batch", 3]}],
        "outputs": [{"name": "y", "dtype": "float32", "shape": ["batch", 4]}],
        "parameters": [
            {"name": "bias", "dtype": "float32", "shape": [4]},
            {"name": "kernel", "dtype": "float32", "shape": [3, 4]},
        ],
    }


def test_the_same_model_gives_the_same_file(tmp_path):
    first, second = (saved(tmp_path).read_bytes() for _ in range(2))
    assert first == second


@pytest.mark.parametrize("part", ["header.json", "program", "parameters/0", "parameters/1"])
def test_damage_to_any_part_is_an_error(tmp_path, part):
    path = saved(tmp_path)
    with zipfile.ZipFile(path) as archive:
        content = archive.read(part)
    whole = path.read_bytes()
    start = whole.index(content)
    for at in (start, start + len(content) // 2, start + len(content) - 1):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"model.zip is damaged, or not a file of save_export"):
            load_exported(path)


def test_any_flipped_bit_is_an_error(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    for at in (*range(0, len(whole), 23), *range(len(whole) - 100, len(whole))):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1 << at % 8]) + whole[at + 1 :])
        with pytest.raises(ValueError, match=r"model.zip is damaged, or not a file of save_export"):
            load_exported(path)


def test_what_is_no_such_file(tmp_path):
    path = saved(tmp_path)
    whole = path.read_bytes()
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    for content in (b"", b"text", whole[:1000], (tmp_path / "arrays.npz").read_bytes()):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="not a file of save_exported"):
            load_exported(path)
    with pytest.raises(FileNotFoundError):
        load_exported(tmp_path / "missing.zip")


def changed(path, *, compression=zipfile.ZIP_STORED, digest=True, **parts):
    """The same archive with some parts replaced, and checksums that fit."""
    with zipfile.ZipFile(path) as archive:
        content = {name: archive.read(name) for name in archive.namelist()} | parts
        comment = archive.comment
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
        archive.comment = comment if digest else b""
    if digest:
        whole = path.read_bytes()
        fits = b"sha256 " + hashlib.sha256(whole[: -len(comment)]).hexdigest().encode()
        path.write_bytes(whole[: -len(comment)] + fits + comment[len(fits) :])


def with_header(path, *, digest=True, **fields):
    """The same archive with some fields of the header replaced, or left out where None."""
    with zipfile.ZipFile(path) as archive:
        header = json.loads(archive.read("header.json")) | fields
    header = {name: value for name, value in header.items() if value is not None}
    changed(path, digest=digest, **{"header.json": json.dumps(header)})


def test_files_of_later_versions(tmp_path):
    path = saved(tmp_path)
    changed(path, program=b"what this JAX cannot read")
    with pytest.raises(ValueError, match=r"made with jax .* update JAX, or save the model with th"):
        load_exported(path)
    later = {"format": "straw_jax exported model", "version": 3}
    changed(path, **{"header.json": json.dumps(later)})
    with pytest.raises(ValueError, match=r"version 2 or earlier, got 3\. Update straw_jax"):
        load_exported(path)
    changed(path, **{"header.json": json.dumps({"format": "another", "version": 1})})
    with pytest.raises(ValueError, match="its format is 'another'"):
        load_exported(path)


def test_files_of_version_1_are_read_and_have_no_hmac(tmp_path):
    path = saved(tmp_path)
    with_header(path, digest=False, version=1)
    assert_close(load_exported(path)(X), dense(PARAMS, X), 1e-5)
    with pytest.raises(ValueError, match="to be saved with this key; it has another's HMAC, or no"):
        load_exported(path, key=b"secret")
    with_header(path, digest=False, version=2)
    with pytest.raises(ValueError, match="its SHA-256 is missing"):
        load_exported(path)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"version": None}, "its header has no version"),
        ({"version": "9"}, "its header has no version"),
        ({"version": True}, "its header has no version"),
        ({"version": 1}, "its SHA-256 is missing"),
        ({"jax": None}, "its header has no jax that is a str"),
        ({"parameters": {}}, "its header has no parameters that is a list"),
        ({"parameters": []}, "its header has other parameters than"),
        ({"parameters": [1, 2]}, "its header has other parameters than"),
        ({"platforms": ["tpu"]}, "its header has other platforms than its program"),
        ({"inputs": [{"name": "x", "dtype": "float32", "shape": [1, 3]}]}, "has other inputs than"),
        ({"outputs": []}, "its header has other outputs than its program"),
    ],
)
def test_headers_that_say_something_else(tmp_path, fields, reason):
    path = saved(tmp_path)
    with_header(path, **fields)
    with pytest.raises(ValueError, match=f"model.zip is damaged, or not a file .*{reason}"):
        load_exported(path)


def test_parameters_that_do_not_fit_the_program(tmp_path):
    path = saved(tmp_path)
    other = [
        {"name": "bias", "dtype": "float32", "shape": [4]},
        {"name": "kernel", "dtype": "float32", "shape": [4, 3]},
    ]
    with_header(path, parameters=other)
    with pytest.raises(ValueError, match="its header has other parameters than its program"):
        load_exported(path)
    path = saved(tmp_path)
    changed(path, **{"parameters/0": bytes(12)})
    with pytest.raises(ValueError, match="is damaged, or not a file of save_exported"):
        load_exported(path)


def test_no_part_costs_more_memory_than_the_file(tmp_path):
    path = saved(tmp_path)
    small = path.read_bytes()
    large = 2**26
    hostile = {
        "not stored as they are": {"parameters/0": bytes(large)},
        "its header has 67,108,864 bytes": {"header.json": b" " * large},
    }
    for reason, parts in hostile.items():
        path.write_bytes(small)
        changed(path, compression=zipfile.ZIP_DEFLATED, **parts)
        tracemalloc.start()
        with pytest.raises(ValueError, match=reason):
            load_exported(path)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < large / 8
    path.write_bytes(b"PK\1\2" * 100_001)
    with pytest.raises(ValueError, match="it has too many parts"):
        load_exported(path)


def test_a_header_that_could_not_be_read_is_not_written(tmp_path):
    names = [f"{i}{'_' * 2**20}" for i in range(9)]
    with pytest.raises(ValueError, match=r"at most 8,388,608 bytes, got .* for 9 parameters"):
        saved(tmp_path, lambda params, x: x, dict.fromkeys(names, jnp.ones(1)))
    assert not list(tmp_path.iterdir())


def test_a_key_shows_who_saved_a_file(tmp_path):
    path = saved(tmp_path, key=b"secret")
    want = dense(PARAMS, X)
    for key in (b"secret", None):
        assert_close(load_exported(path, key=key)(X), want, 1e-5)
    foreign = r"expected .*model.zip to be saved with this key; it has another's HMAC, or none"
    with pytest.raises(ValueError, match=foreign):
        load_exported(path, key=b"other")
    changed(path, **{"parameters/0": np.ones(4, np.float32).tobytes()})  # the SHA-256 fits
    assert load_exported(path)(X).shape == (33, 4)
    with pytest.raises(ValueError, match=foreign):
        load_exported(path, key=b"secret")
    with pytest.raises(ValueError, match=foreign):
        load_exported(saved(tmp_path), key=b"secret")
    for bad in ("secret", b"", jax.random.key(0)):
        for use in (partial(saved, tmp_path), partial(load_exported, path)):
            with pytest.raises(
                ValueError, match=r"exported: expected the key to be bytes, such as"
            ):
                use(key=bad)


def test_adapters_are_exchanged_without_compiling(tmp_path, caplog):
    apply = modulate(dense)

    def call(params, x, *, factors):
        return apply(params, factors, x)

    def adapters(seed, n=33):
        return {
            "kernel": Factors(random_array(seed, (n, 3, 2)), random_array(seed + 1, (n, 2, 4))),
            "bias": random_array(seed + 2, (n, 4)),
        }

    path = saved(tmp_path, call, sample=X[:1], factors=adapters(0, 1))
    predict = load_exported(path, batch_sizes=(33,))
    predict(X, factors=adapters(0))
    own = adapters(10)
    with jax.log_compiles():
        got = predict(X, factors=own)
    assert "Compiling" not in caplog.text
    assert_close(got, call(PARAMS, X, factors=own), 1e-5)
    with pytest.raises(
        ValueError, match=r"factors/kernel/B: expected float32 \[batch, 3, 2\], got"
    ):
        predict(X, factors=own | {"kernel": Factors(*(own["kernel"].A, own["kernel"].B))})


KINDS = {
    "lowrank": LowRank(2),
    "basis": SharedLowRank(2, full=True),
    "gains": Gain(inputs=True),
    "mixture": Mixture(2),
    "dora": DoRA(1),
    "whole": "whole",
    "several": [Mixture(2), DoRA(1), Gain()],
    "posed": "whole",
}


def all_kinds():
    """A layer of each kind, and adapters of all: what samples share has no sample axis."""
    params = {name: random_array(i, (4, 3)) for i, name in enumerate(KINDS)}
    spec = factor_spec(params, KINDS)
    layers = modulate(lambda params, x: {name: x @ W for name, W in params.items()})

    def adapters(seed, leading=()):
        shared = {
            f"{leaf.path}/{name}": random_array(seed + 1, part.shape)
            for leaf in spec
            for name, part in leaf.shared.items()
        }
        factors = spec.unpack(np.asarray(random_array(seed, (*leading, spec.size))), shared)
        pose = random_array(seed + 2, (*leading, 2, 3))
        return factors | {"posed": Posed(pose, factors["posed"], (2, 2))}

    return params, layers, adapters


def test_a_hundred_adapters_of_every_kind_and_one_program(tmp_path, caplog):
    params, layers, adapters = all_kinds()
    x = random_array(9, (5, 4))

    def call(params, x, *, factors):
        return layers(params, factors, x)

    one, several = adapters(0), adapters(0, (5,))
    axes = jax.tree.map(lambda a, b: 0 if a.ndim > b.ndim else None, several, one)
    for name, example, shared in (("one", one, "factors"), ("several", several, {"factors": axes})):
        (folder := tmp_path / name).mkdir()
        path = saved(folder, call, params, x, factors=example, shared=shared)
        predict = load_exported(path, batch_sizes=(8,))
        y = predict(x, factors=example)
        caplog.clear()
        with jax.log_compiles():
            for seed in range(100):
                own = adapters(seed, () if name == "one" else (5,))
                y = predict(x, factors=own)
        assert "Compiling" not in caplog.text
        assert_close(y, jax.jit(call)(params, x, factors=own), 1e-5)
        with pytest.raises(ValueError, match=r"expected the inputs factors/basis/core.*, got x: f"):
            predict(x)


def test_a_bank_is_an_input_or_a_part_of_the_file(tmp_path, caplog):
    """With the numbers of its adapters as per-sample inputs; another bank of its size, too."""
    layer = modulate(dense)

    def bank(seed):
        return {"kernel": Factors(random_array(seed, (6, 3, 2)), random_array(seed, (6, 2, 4)))}

    def call(params, x, *, bank, ids):
        return layer(params, jax.tree.map(lambda leaf: leaf[ids], bank), x)

    def stored(params, x, *, ids):
        return call(params["base"], x, bank=params["bank"], ids=ids)

    ids = np.arange(33) * 5 % 6
    path = saved(tmp_path, call, sample=X[:1], bank=bank(0), ids=ids[:1], shared=["bank"])
    predict = load_exported(path, batch_sizes=(8, 33))
    predict(X, bank=bank(0), ids=ids)
    with jax.log_compiles():
        got = predict(X, bank=bank(1), ids=ids)
    assert "Compiling" not in caplog.text
    want = call(PARAMS, X, bank=bank(1), ids=ids)
    assert_close(got, want, 1e-5)
    assert_close(predict(X[:11], bank=bank(1), ids=ids[:11]), want[:11], 1e-5)
    both = {"base": PARAMS, "bank": bank(1)}
    path = saved(tmp_path, stored, both, X[:1], ids=ids[:1])
    assert_close(load_exported(path, batch_sizes=(33,))(X, ids=ids), want, 1e-5)
    with pytest.raises(ValueError, match=r"bank/kernel/B: expected float32 \[6, 3, 2\], got"):
        predict(X, bank=jax.tree.map(lambda leaf: leaf[:5], bank(1)), ids=ids)
    save = partial(saved, tmp_path, call, sample=X[:1], bank=bank(0), ids=ids[:1])
    for shared in ({"bank": 1}, "x", 3, {"bank": {"kernel": (0, 0, 0)}}):
        with pytest.raises(ValueError, match=r"expected shared to be (names|trees)"):
            save(shared=shared)
    with pytest.raises(ValueError, match=r"to name some of the inputs \['bank', 'ids'\], got"):
        save(shared=["bonk"])


def test_quantised_weights_in_a_file(tmp_path):
    params = {"W": quantise(random_array(0, (64, 32)), bits=4), "b": random_array(1, (32,))}
    factors = {"W": Factors(random_array(2, (64, 2)), random_array(3, (2, 32)))}
    layer = modulate(lambda params, x: x @ params["W"] + params["b"][None])

    def call(params, x, *, factors):
        return layer(params, factors, x)

    x = random_array(4, (8, 64))
    path = saved(tmp_path, call, params, x, factors=factors, shared="factors")
    assert_close(load_exported(path)(x, factors=factors), call(params, x, factors=factors), 1e-5)
    with zipfile.ZipFile(path) as archive:
        stored = [part.file_size for part in archive.infolist() if "parameters" in part.filename]
    assert sum(stored) == params["W"].nbytes + 32 * 4


def test_factors_and_poses_as_outputs(tmp_path):
    def write(params, x):
        pose = jnp.zeros((x.shape[0], 2, 3)) + params["kernel"][0, 0]
        factors = Factors(x[:, :, None], x[:, None])
        return {"posed": Posed(pose, factors, (2, 2)), "plain": Posed(pose)}

    got = load_exported(saved(tmp_path, write))(X)
    want = write(PARAMS, X)
    assert jax.tree.structure(got) == jax.tree.structure(want)
    for g, w in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        assert_close(g, w, 1e-6)


def test_programs_that_cannot_run_here(tmp_path):
    path = saved(tmp_path, platforms=["cuda"])
    with pytest.raises(ValueError, match=r"for 'cpu', got one for \('cuda',\).*platforms=\['cpu'"):
        load_exported(path)
    with jax.enable_x64(True):
        path = saved(tmp_path, sample=np.zeros((2, 3)), params=jax.tree.map(np.float64, PARAMS))
        assert load_exported(path)(np.ones((2, 3))).dtype == np.float64
    with pytest.raises(ValueError, match=r"computes with float64, which is off.*JAX_ENABLE_X64"):
        load_exported(path)


def test_inputs_that_do_not_fit(tmp_path):
    predict = load_exported(saved(tmp_path))
    for bad in (X[:, :2], X[0], X[None], X.astype(np.int32), X.astype(jnp.bfloat16)):
        with pytest.raises(
            ValueError, match=r"x: expected float32 \[batch, 3\], got \w+ \[.*\]\. "
        ):
            predict(bad)
    with pytest.raises(ValueError, match=r"inputs x: float32 \[batch, 3\], got context: f.*, x: "):
        predict(X, context=X)
    with pytest.raises(ValueError, match=r"inputs x: float32 \[batch, 3\], got x/0: float32 \[33"):
        predict([X])


def test_numbers_are_narrowed_as_everywhere_in_jax(tmp_path):
    predict = load_exported(saved(tmp_path, sample=np.zeros((2, 3))))
    assert_close(predict(np.ones((2, 3))), predict(np.ones((2, 3), np.float32)), 1e-6)


def test_models_that_cannot_be_saved(tmp_path):
    key = jax.random.key(0)
    for bad, kind in [
        (key, "key<fry>"),
        ("text", "str"),
        (np.array(["a"]), "<U1"),
        (print, "buil"),
    ]:
        with pytest.raises(ValueError, match=f"arrays of numbers, got noise: {kind}"):
            saved(tmp_path, params=PARAMS | {"noise": bad})
    with pytest.raises(TypeError, match="as a symbol"):
        saved(tmp_path, lambda params, x: x * len(x))
    with pytest.raises(ValueError, match=r"to return arrays \[batch, ...\], got y: float32 \[\]"):
        saved(tmp_path, lambda params, x: x.sum())
    with pytest.raises(TypeError, match="multiple values for keyword argument 'x'"):
        saved(tmp_path, x=X)
    with pytest.raises(ValueError, match=r"save_exported: expected arrays \[batch, ...\]"):
        saved(tmp_path, sample=1.0)
    for platforms in ("cpu", ["gpu"], []):
        with pytest.raises(ValueError, match=r"expected platforms of \('cpu', 'cuda', 'rocm', 'tp"):
            saved(tmp_path, platforms=platforms)
    assert not list(tmp_path.iterdir())


def test_a_save_that_fails_leaves_the_earlier_file(tmp_path, monkeypatch):
    path = saved(tmp_path)

    def full(*args):
        raise OSError("no space left")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(OSError, match="no space left"):
            saved(tmp_path, params=jax.tree.map(jnp.zeros_like, PARAMS))
    assert list(tmp_path.iterdir()) == [path]
    assert_close(load_exported(path)(X), dense(PARAMS, X), 1e-5)
