import hashlib
import itertools
import os

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import traverse_util

from straw_experiments.char_lm import analysis, evaluate, networks
from straw_experiments.char_lm.evaluate import in_chunks
from straw_experiments.char_lm.models import MODELS, Sizes
from straw_experiments.char_lm.networks import breakdown, features_for, make_model
from straw_experiments.char_lm.train import Recipe, Trainer, streams
from straw_experiments.data import text
from straw_experiments.runner.state import training_key
from straw_jax.costs import nested_jaxprs

SIZES = Sizes(characters=5, hyper_features=3, embedding=2, rank=1)
NUMBERS = np.random.default_rng(0).integers(0, 5, 400, dtype=np.uint8)
TEXT = text.Text("made", "abcd\n", NUMBERS, NUMBERS[:90], NUMBERS[100:230])


def params_of(name, features=4, scale=0.3):
    """Random parameters: none of them starts at 0, so that none is without effect."""
    shapes = networks._shapes(make_model(name, features, SIZES))
    rng = np.random.default_rng(7)
    return jax.tree.map(
        lambda leaf: jnp.asarray(scale * rng.standard_normal(leaf.shape, np.float32)), shapes
    )


def learner_of(name, dropout=0.2):
    model, trained = (
        make_model(name, 4, SIZES, dropout=dropout, train=train) for train in (False, True)
    )
    return Trainer(name, model, trained, TEXT, Recipe(2, 4, 10, 1e-2))


def in_precision(name, precision):
    return make_model(name, 4, SIZES._replace(precision=precision))


# --- text ---------------------------------------------------------------------------------------


def test_file_is_parted_in_its_order(tmp_path):
    path = tmp_path / "some.txt"
    content = "".join(chr(ord("a") + i % 7) for i in range(190)) + "é" * 10
    path.write_text(content, encoding="utf-8")
    found = text.load(str(path))
    assert (found.name, found.characters) == ("some.txt", "abcdefgé")
    parts = found.train, found.validation, found.test
    assert [len(part) for part in parts] == [180, 10, 10]
    assert "".join(found.decode(part) for part in parts) == content
    assert found.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()


def write_treebank(folder, monkeypatch):
    folder.mkdir(parents=True, exist_ok=True)
    for part in text.PARTS:
        raw = f" the {part} <unk> \n of it N \n".encode()
        (folder / f"ptb.{part}.txt").write_bytes(raw)
        monkeypatch.setitem(text.SHA256, part, hashlib.sha256(raw).hexdigest())


@pytest.mark.parametrize("where", [".", "ptb", "downloads/manual/ptb"])
def test_treebank_is_found_and_stripped(tmp_path, monkeypatch, where):
    write_treebank(tmp_path / where, monkeypatch)
    found = text.load(data_dir=str(tmp_path))
    assert found.name == "Penn Treebank"
    assert found.decode(found.validation) == "the valid <unk>\nof it N"
    (tmp_path / where / "ptb.test.txt").write_text("another")
    with pytest.raises(ValueError, match=r"expected .*ptb.test.txt with sha256 .* --text PATH"):
        text.load(data_dir=str(tmp_path))


def test_treebank_that_is_nowhere_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(text, "URL", "http://localhost:9/nothing")
    with pytest.raises(ValueError, match=r"cannot be reached .* or another text with --text PATH"):
        text.load(data_dir=str(tmp_path))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif("STRAW_PTB_DIR" not in os.environ, reason="STRAW_PTB_DIR unset")
def test_treebank_has_its_published_sizes():
    found = text.load(data_dir=os.environ["STRAW_PTB_DIR"])
    parts = found.train, found.validation, found.test
    assert [len(part) // 1000 for part in parts] == [5017, 393, 442]
    assert len(found.characters) == 50


def test_texts_that_are_too_short_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"made: a step reads 8 pieces .* at least 401 .* got 400"):
        text.check_length(TEXT, 8, 50)
    with pytest.raises(ValueError, match="expected at least 2 characters each"):
        text.check_length(TEXT._replace(test=NUMBERS[:1]), 1, 1)
    with pytest.raises(ValueError, match=r"argument --text: .* cannot read .*nothing.txt"):
        text.load(str(tmp_path / "nothing.txt"))


# --- models -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_models_are_as_large_as_they_may_be(name):
    def count(features):
        return breakdown(networks._shapes(make_model(name, features, SIZES)))["all"]

    features = features_for(name, 3_000, SIZES)
    assert count(features) <= 3_000 < count(features + 1)
    params = params_of(name)
    found = breakdown(params)
    assert found.pop("all") == sum(found.values()) == sum(x.size for x in jax.tree.leaves(params))
    assert found["output"] == 5 * 4 + 5
    modulated = MODELS[name].modulated
    assert bool(found["hyper cell"]) == bool(found["projections"]) == modulated
    with pytest.raises(ValueError, match=f"argument --parameters: {name} has at least"):
        features_for(name, 10, SIZES)


def test_multiply_adds_are_those_of_the_matrices():
    model = make_model("lstm", 4, SIZES)
    assert networks.multiply_adds(model) == (5 + 4) * 16 + 4 * 5


def test_dropout_is_of_inputs_and_outputs_too():
    model = make_model("lstm", 4, SIZES, dropout=1.0, train=True)
    params, read = params_of("lstm"), jnp.zeros((2, 3), jnp.int32)
    _, logits = model.apply({"params": params}, read, rngs={"dropout": jax.random.key(0)})
    expected = jnp.broadcast_to(params["output"]["bias"], logits.shape)
    np.testing.assert_array_equal(logits, expected)


# --- training and test --------------------------------------------------------------------------


def test_streams_are_pieces_of_the_text_in_order():
    cut = streams(np.arange(50), batch_size=3, length=5)
    assert cut.shape == (3, 16)  # 3 steps of 5, and what follows them
    np.testing.assert_array_equal(cut[1], 16 + np.arange(16))


@pytest.mark.parametrize("name", ["lstm", "ln_hyper", "lowrank"])
def test_bits_are_those_of_a_plain_loop(name):
    model, params = make_model(name, 4, SIZES), params_of(name)
    carry, surprise = model.initial_carry(1), 0.0

    @jax.jit
    def step(number, carry):
        carry, logits = model.apply({"params": params}, number[None, None], carry)
        return carry, jax.nn.log_softmax(logits[0, 0])

    for number, said in itertools.pairwise(TEXT.test):
        carry, logs = step(np.int32(number), carry)
        surprise -= float(logs[said])
    found = evaluate.make_bits(model)(params, TEXT.test)
    assert found == pytest.approx(surprise / (len(TEXT.test) - 1) / np.log(2), rel=1e-5)


def test_test_texts_are_read_in_pieces(monkeypatch):
    monkeypatch.setattr(evaluate, "_STREAM", 30)
    monkeypatch.setattr(evaluate, "_CHUNK", 8)
    inputs, targets, real = in_chunks(TEXT.test)  # 129 to predict: 4 pieces of 33
    assert inputs.shape == targets.shape == real.shape == (5, 4, 8)
    assert real.sum() == 129
    read = inputs.swapaxes(0, 1).reshape(4, -1)[:, :33].ravel()
    np.testing.assert_array_equal(read[:129], TEXT.test[:-1])
    said = targets.swapaxes(0, 1).reshape(4, -1)[:, :33].ravel()
    np.testing.assert_array_equal(said[:129], TEXT.test[1:])


@pytest.mark.slow
def test_steps_carry_the_state_on_and_clip_gradients():
    """Two steps beside plain ones, in which the state is handed on by hand."""
    learner = learner_of("hyper", dropout=0.0)
    state, key = learner.init_state(0), training_key(0)
    variables, opt_state = jax.tree.map(np.array, (state.variables, state.opt_state))
    params, carry, losses = variables["params"], learner.initial_carry(), []
    cut = np.asarray(learner.streams, np.int32)

    @jax.jit
    def value_and_gradient(params, carry, numbers):
        return jax.value_and_grad(loss_of, has_aux=True)(params, carry, numbers)

    def loss_of(params, carry, numbers):
        carry, logits = learner.model.apply({"params": params}, numbers[:, :-1], carry)
        said = jax.nn.log_softmax(logits)
        picked = jnp.take_along_axis(said, numbers[:, 1:, None], axis=-1)
        return -jnp.mean(picked), carry

    @jax.jit
    def updated(grad, opt_state, params):
        with jax.numpy_dtype_promotion("standard"):
            changes, opt_state = learner.optimizer.update(grad, opt_state, params)
        return optax.apply_updates(params, changes), opt_state

    for start in (0, 10):
        (loss, carry), grad = value_and_gradient(params, carry, cut[:, start : start + 11])
        grad = jax.device_get(grad)
        norm = np.linalg.norm([np.linalg.norm(leaf) for leaf in jax.tree.leaves(grad)])
        grad = jax.tree.map(lambda g, norm=norm: g / np.float32(max(norm, 1.0)), grad)
        params, opt_state = updated(grad, opt_state, params)
        losses.append(float(loss))
    state, ended, loss, finite = learner.train_steps(state, learner.initial_carry(), key, 2)
    assert int(finite) == 2
    assert float(loss) == pytest.approx(np.mean(losses), rel=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=2e-5), ended, carry)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-4), state.variables["params"], params
    )


def test_steps_are_compiled_once_and_many_are_as_one_by_one():
    learner = learner_of("lowrank")
    key = training_key(1)
    whole = learner.train_steps(learner.init_state(0), learner.initial_carry(), key, 3)
    state, carry = learner.init_state(0), learner.initial_carry()
    compiled = learner.train_steps
    for _ in range(3):
        state, carry, _, _ = learner.train_steps(state, carry, key, 1)
    assert learner.train_steps is compiled
    jax.tree.map(np.testing.assert_array_equal, whole[:2], (state, carry))


def test_samples_follow_the_model_and_the_key():
    model, params = make_model("lstm", 4, SIZES), params_of("lstm")
    sure = traverse_util.path_aware_map(
        lambda path, leaf: (
            leaf + jnp.asarray([0, 0, 100, 0, 0.0]) if path == ("output", "bias") else leaf
        ),
        params,
    )
    sample = evaluate.make_sample(model, 4)
    np.testing.assert_array_equal(sample(sure, jax.random.key(0), 6), [2] * 6)
    one, same, other = (sample(params, jax.random.key(i), 30) for i in (0, 0, 1))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


# --- analysis -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["hyper", "ln_hyper", "lowrank"])
def test_what_a_cell_saw_can_be_put_in_its_own_place(name):
    model, params = make_model(name, 4, SIZES), params_of(name)
    bits = evaluate.make_bits(model)
    seen = analysis._seen(model, params, TEXT.test)
    assert bits(params, TEXT.test, seen) == pytest.approx(bits(params, TEXT.test), rel=1e-6)
    assert bits(params, TEXT.test, jnp.zeros_like(seen)) != bits(params, TEXT.test)


def test_frozen_factors_are_a_static_lstm():
    """With the hyper cell's state held, a HyperLSTM is an LSTM of scaled kernels."""
    model, params = make_model("hyper", 4, SIZES), params_of("hyper")
    held = jnp.asarray([0.5, -0.2, 0.1])
    _, sown = analysis._observed(
        model, params, jnp.asarray(TEXT.test[None, :2]), model.initial_carry(1)
    )
    assert sown["written"][0]["input"].shape == (1, 2, 16)
    cell = params["cell"]

    def factors(name):
        layer = cell[f"{name}_embeddings"]
        embeddings = (held @ layer["kernel"] + layer.get("bias", jnp.zeros(8))).reshape(4, 2)
        kernel = cell[f"{name}_factors" if name != "bias" else "bias_change"]
        return jnp.einsum("ge,gef->gf", embeddings, kernel).reshape(-1)

    kernels = [cell[name]["kernel"] * factors(name)[None] for name in ("input", "state")]
    gates = {"kernel": jnp.concatenate(kernels), "bias": cell["bias"] + factors("bias")}
    plain = {"cell": {"gates": gates}, "output": params["output"]}
    expected = evaluate.make_bits(make_model("lstm", 4, SIZES))(plain, TEXT.test)
    shape = analysis._seen(model, params, TEXT.test).shape
    found = evaluate.make_bits(model)(params, TEXT.test, jnp.broadcast_to(held, shape))
    assert found == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", ["hyper", "lowrank"])
def test_mean_weights_are_a_static_lstm_of_dense_means(name):
    """What is written at each training character, its mean, and an LSTM that has it."""
    model, params = make_model(name, 4, SIZES), params_of(name, scale=0.6)
    if name == "lowrank":  # against the cell's scale: an update that matters
        params["cell"]["B"]["kernel"] *= 10
    read = jnp.asarray(TEXT.train[None, :-1])
    _, sown = analysis._observed(model, params, read, model.initial_carry(1))
    sown, cell = jax.tree.map(np.asarray, (sown, params["cell"]))
    written, seen = sown["written"][0], sown["seen"][0][0]
    if name == "hyper":
        parts = [cell[part]["kernel"] * written[part][0][:, None] for part in ("input", "state")]
        kernel = np.concatenate(parts, axis=1).mean(axis=0)
        embeddings = (seen @ cell["bias_embeddings"]["kernel"]).reshape(-1, 4, 2)
        biases = np.einsum("nge,gef->ngf", embeddings, cell["bias_change"])
        bias = cell["bias"] + biases.reshape(-1, 16).mean(axis=0)
    else:
        kernel = cell["kernel"] + (written["B"][0] @ written["A"][0]).mean(axis=0)
        bias = cell["bias"]
    plain = {"cell": {"gates": {"kernel": kernel, "bias": bias}}, "output": params["output"]}
    expected = evaluate.make_bits(make_model("lstm", 4, SIZES))(plain, TEXT.test)
    found = analysis.analyse(learner_of(name), params, seed=0)["controls"]
    assert found["mean weights"] == pytest.approx(expected, rel=1e-5)
    if name == "lowrank":
        assert abs(found["mean weights"] - found["mean"]) > 1e-4
        assert abs(found["mean weights"] - found["zero"]) > 1e-4


@pytest.mark.parametrize("name", ["hyper", "lowrank"])
def test_movement_is_that_of_dense_kernels(name):
    model, params = make_model(name, 4, SIZES), params_of(name)
    pieces = jnp.asarray(TEXT.test[:12].reshape(2, 6))
    _, sown = analysis._observed(model, params, pieces, model.initial_carry(2))
    written, cell = jax.tree.map(np.asarray, (sown["written"][0], params["cell"]))
    if name == "hyper":
        parts = [cell[part]["kernel"] * written[part][..., None, :] for part in ("input", "state")]
        kernels = np.concatenate(parts, axis=-2)
    else:
        kernels = cell["kernel"] + written["B"] @ written["A"]
    kernels = kernels.reshape(2, 6, 9, 4, 4)
    change = np.sqrt((np.diff(kernels, axis=1) ** 2).sum(axis=(2, 4)))
    mean = np.sqrt((kernels.mean(axis=(0, 1)) ** 2).sum(axis=(0, 2)))
    found = analysis._moved(model, params, pieces)
    np.testing.assert_allclose(found, change / mean, rtol=1e-4, atol=1e-5)


def test_analysis_reports_controls_and_movement():
    found = analysis.analyse(learner_of("ln_hyper"), params_of("ln_hyper"), seed=0)
    assert list(found["controls"]) == ["own", "mean", "mean weights", "shuffled", "zero"]
    assert len({round(bits, 6) for bits in found["controls"].values()}) == 4
    assert found["controls"]["mean weights"] == found["controls"]["mean"]
    assert found == analysis.analyse(learner_of("ln_hyper"), params_of("ln_hyper"), seed=0)
    assert set(found["movement"]["gates"]) == set(analysis.GATES)
    assert len(found["stretch"]["text"]) == len(found["stretch"]["gates"]["input"])


# --- precision ----------------------------------------------------------------------------------

READ = np.random.default_rng(3).integers(0, 5, (3, 9))


def loss_and_gradient(name, precision, params):
    model = in_precision(name, precision)

    def loss(params):
        carry = model.initial_carry(len(READ))
        variables = {"params": params}
        losses, _ = evaluate.cross_entropy(model, variables, READ[:, :-1], READ[:, 1:], carry)
        assert losses.dtype == jnp.float32
        return jnp.mean(losses)

    return jax.value_and_grad(loss)(params)


@pytest.mark.parametrize("name", list(MODELS))
def test_float32_program_has_no_number_of_16_bits(name):
    params = networks._shapes(in_precision(name, "float32"))
    assert "bf16" not in str(
        jax.make_jaxpr(lambda p: loss_and_gradient(name, "float32", p))(params)
    )


def products(jaxpr):
    """The dtypes of every matrix product's two factors."""
    for equation in jaxpr.eqns:
        if equation.primitive.name == "dot_general":
            yield tuple(str(each.aval.dtype) for each in equation.invars)
        for inner in nested_jaxprs(equation.params):
            yield from products(inner)


@pytest.mark.parametrize("name", list(MODELS))
def test_bfloat16_multiplies_numbers_of_16_bits(name):
    with jax.numpy_dtype_promotion("standard"):  # as scripts run; Flax's norms need it
        params = networks._shapes(in_precision(name, "bfloat16"))
        jaxpr = jax.make_jaxpr(lambda p: loss_and_gradient(name, "bfloat16", p))(params)
    assert params == networks._shapes(in_precision(name, "float32"))
    assert set(products(jaxpr.jaxpr)) == {("bfloat16", "bfloat16")}


@pytest.mark.parametrize("name", ["lstm", "hyper", "lowrank"])
def test_bfloat16_loss_and_gradient_are_near_those_of_float32(name):
    params = params_of(name)
    compute = jax.jit(loss_and_gradient, static_argnums=(0, 1))
    (loss, gradient), (exact, of_exact) = (
        compute(name, precision, params) for precision in ("bfloat16", "float32")
    )
    assert loss == pytest.approx(float(exact), rel=5e-3)
    for found, expected in zip(jax.tree.leaves(gradient), jax.tree.leaves(of_exact), strict=True):
        assert found.dtype == jnp.float32
        assert np.linalg.norm(found - expected) < 0.1 * np.linalg.norm(expected)


def test_bfloat16_states_are_examined_in_float32():
    """Means of many states, and norms of small changes, would be lost in 8 bits."""
    model, params = in_precision("lowrank", "bfloat16"), params_of("lowrank")
    shapes = jax.eval_shape(
        lambda p: analysis._observed(model, p, READ, model.initial_carry(len(READ))), params
    )
    (memory, state), _ = shapes[0]
    assert (memory.dtype, state.dtype) == (jnp.float32, jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves(shapes[1])} == {jnp.dtype("float32")}
