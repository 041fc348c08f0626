import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scripts
import tiny_llama

from straw_experiments.documents import evaluate, gradients, networks, report, study, texts
from straw_experiments.documents.config import parse
from straw_experiments.documents.models import MODELS
from straw_experiments.documents.networks import Context, Sizes
from straw_experiments.documents.reading import Reader, open_reader
from straw_experiments.documents.tasks import Documents, Needles
from straw_experiments.documents.train import losses
from straw_experiments.smollm import weights
from straw_experiments.smollm.model import KERNELS, activations, llama
from straw_jax import Factors

RANDOM = np.random.default_rng(0)
TOKENS = RANDOM.integers(0, 200, (3, 9))
LENGTHS = np.array([9, 5, 7])
MASK = np.arange(9)[None] < LENGTHS[:, None]


@pytest.fixture(scope="module")
def gguf(tmp_path_factory):
    path = tmp_path_factory.mktemp("tiny") / "tiny.gguf"
    return tiny_llama.write(path, tiny_llama.random_tensors())


@pytest.fixture(scope="module")
def tiny(gguf):
    return weights.load(str(gguf))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Made-up texts: words of their own in each, and so many that each part has some."""
    folder = tmp_path_factory.mktemp("texts")
    for i in range(40):
        own = RANDOM.integers(0, 60, 500)
        (folder / f"package{i}").mkdir()
        (folder / f"package{i}" / "a.txt").write_text(" ".join(f"w{each}" for each in own))
    (folder / "package0" / "copy.txt").write_text((folder / "package1" / "a.txt").read_text())
    (folder / "package0" / "short.txt").write_text("short")
    (folder / "package0" / "a.bin").write_text("x" * 2000)
    (folder / "package0" / "other.txt").write_bytes(b"\xff" * 2000)
    return folder


@pytest.fixture(scope="module")
def corpus(folder, tiny):
    return texts.load(str(folder), tiny.tokenizer, 10**6)


# --- Texts and tasks ----------------------------------------------------------------------------


def test_a_package_is_in_one_part_and_a_text_is_read_once(corpus, tiny, folder):
    assert sum(corpus.packages.values()) == 40
    assert sum(map(len, corpus.documents.values())) == 40
    parts = [{tuple(each) for each in corpus.documents[part]} for part in texts.PARTS]
    assert not parts[0] & parts[1]
    assert not parts[1] & parts[2]
    assert not parts[0] & parts[2]
    assert all(parts)
    fewer = texts.load(str(folder), tiny.tokenizer, 5000)
    assert len(fewer.documents["train"]) < len(corpus.documents["train"])
    assert {tuple(each) for each in fewer.documents["test"]} == parts[2]
    described = corpus.description()
    assert described["tokens"]["train"] == sum(map(len, corpus.documents["train"]))
    assert described["sha256"] != fewer.description()["sha256"]


def test_folders_without_texts_are_refused(tmp_path, tiny):
    with pytest.raises(ValueError, match=r"expected texts .* got none for train, validation, test"):
        texts.load(str(tmp_path), tiny.tokenizer, 100)


@pytest.mark.parametrize("length", [None, 20])
def test_a_passage_follows_its_context(corpus, length):
    task = Documents(corpus, 40, 12)
    batch = task.draw(np.random.default_rng(1), 6, "test", length=length)
    joined = [" ".join(map(str, each)) for each in corpus.documents["test"]]
    lengths = batch.mask.sum(1)
    assert batch.context.shape == (6, length or 40)
    assert batch.query.shape == (6, 12)
    assert (lengths == length).all() if length else len(set(lengths)) > 1
    for context, mask, query in zip(batch.context, batch.mask, batch.query, strict=True):
        whole = " ".join(map(str, [*context[mask], *query]))
        assert any(f" {whole} " in f" {each} " for each in joined)
        assert mask[: mask.sum()].all()
    assert not batch.asked[:, 0].any()
    assert batch.asked[:, 1:].all()
    again = task.draw(np.random.default_rng(1), 6, "test", length=length)
    assert all(np.array_equal(*each) for each in zip(batch, again, strict=True))


def test_a_needle_is_in_its_context_and_asked_for_without_it(corpus, tiny):
    task = Needles(corpus, tiny.tokenizer, 200, facts=2, queries=2)
    decode = tiny.tokenizer.decode
    seen = {}
    for part in ("train", "test"):
        batch = task.draw(np.random.default_rng(2), 8, part)
        assert batch.ids.tolist() == [i for i in range(8) for _ in range(2)]
        codes = []
        for row, (query, asked) in enumerate(zip(batch.query, batch.asked, strict=True)):
            context = decode(batch.context[row // 2][batch.mask[row // 2]])
            code = decode(query[asked])
            assert len(code) == 4
            assert code.isdigit()
            question = decode(query[: np.flatnonzero(asked)[0]])
            assert question.startswith(" The code of the ")
            assert question.endswith(" is ")
            assert f"{question}{code}." in context
            codes.append(code)
            seen.setdefault(part, set()).add(question)
        assert len(set(codes)) > 8
    assert not seen["train"] & seen["test"]
    one = task.draw(np.random.default_rng(2), 2, "test", length=150, facts=1)
    assert one.mask.all()
    assert one.context.shape == (2, 150)
    assert len(one.query) == 2


def test_impossible_tasks_are_refused(corpus, tiny):
    with pytest.raises(ValueError, match=r"argument --length: expected \w+ documents of at least"):
        Documents(corpus, 10**5, 12)
    with pytest.raises(ValueError, match=r"argument --length: 9 facts need \d+ tokens, got 100"):
        Needles(corpus, tiny.tokenizer, 100, facts=9, queries=1)


# --- Models -------------------------------------------------------------------------------------


def _sizes(tiny, kernels=("v", "down")):
    return Sizes(tiny.config, kernels, rank=2, width=8)


@pytest.fixture(scope="module")
def context(tiny):
    sizes = _sizes(tiny)
    get = jax.jit(lambda tokens: gradients.read(sizes, tiny.params, tokens, jnp.asarray(MASK)))
    return get(jnp.asarray(TOKENS))


def _trained(model, tiny):
    """Parameters of which none is 0, so that all parts count."""
    params = jax.jit(model.init)(jax.random.key(0))
    params = jax.jit(model.measured)(params, tiny.params, jnp.asarray(TOKENS))
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(1), len(leaves))
    moved = [
        leaf + 0.1 * jax.random.normal(key, leaf.shape)
        for key, leaf in zip(keys, leaves, strict=True)
    ]
    return jax.tree.unflatten(tree, moved)


def test_kernels_read_what_they_are_multiplied_with(tiny):
    found = jax.jit(lambda t: activations(tiny.config, tiny.params, t, KERNELS))(TOKENS)
    layers = tiny.params["layers"]
    of = {name: np.einsum("blti,lio->blto", x, layers[name]) for name, x in found.inputs.items()}
    middle = found.states[:, :-1] + of["o"]
    np.testing.assert_allclose(middle + of["down"], found.states[:, 1:], rtol=1e-4, atol=1e-5)
    hidden = np.asarray(jax.nn.silu(of["gate"])) * of["up"]
    np.testing.assert_allclose(found.inputs["down"], hidden, rtol=1e-4, atol=1e-5)
    assert np.array_equal(found.inputs["q"], found.inputs["v"])
    with pytest.raises(ValueError, match=r"expected kernels of .* got \['x'\]"):
        activations(tiny.config, tiny.params, jnp.asarray(TOKENS), ["x"])


def test_errors_and_inputs_make_the_gradient_of_a_kernel(tiny, context):
    def nats(down):
        params = {**tiny.params, "layers": {**tiny.params["layers"], "down": down}}
        logits = jax.nn.log_softmax(llama(tiny.config, params, jnp.asarray(TOKENS)))
        found = jnp.take_along_axis(logits[:, 1:-1], TOKENS[:, 2:, None], 2)[..., 0]
        return -jnp.sum(found, where=MASK[:, 2:])

    expected = jax.jit(jax.grad(nats))(tiny.params["layers"]["down"])
    found = np.einsum("nlti,nlto->lio", context.inputs["down"], context.errors)
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_an_untrained_step_of_training_lowers_the_nats_of_its_text(dtype, tiny):
    sizes = Sizes(tiny.config, ("down",), rank=16, width=8, dtype=jnp.dtype(dtype))
    weights = jax.tree.map(lambda x: jnp.asarray(x, dtype), tiny.params)
    tokens, whole = jnp.asarray(TOKENS), jnp.ones(TOKENS.shape, bool)

    def both(key):
        model = MODELS["gradients"].build(sizes)
        params = model.measured(model.init(key), weights, tokens)
        asked = jnp.ones(tokens.shape, bool).at[:, :2].set(False)
        adapters = model.write(params, model.read(sizes, weights, tokens, whole))
        adapted = [
            model.apply(weights, adapters, tokens, (jnp.arange(3) + shift) % 3) for shift in (0, 1)
        ]
        plain = llama(tiny.config, weights, tokens)
        return [losses(each, tokens, asked).nats for each in (*adapted, plain)]

    with jax.numpy_dtype_promotion("standard"):  # Flax's norms promote bfloat16 to float32
        own, other, plain = jax.jit(both)(jax.random.key(0))
    assert own < plain - 0.01
    assert own < other


def test_without_text_a_step_of_training_is_a_static_adapter(tiny, context):
    model = MODELS["gradients"].build(_sizes(tiny)._replace(rank=8))
    params = _trained(model, tiny)
    nothing = context._replace(mask=jnp.zeros_like(context.mask))
    written = jax.jit(model.write)(params, nothing)
    own = params["generator"]
    for kernel in ("v", "down"):
        factors = written[f"layers/{kernel}"]
        layers, _, columns = tiny.params["layers"][kernel].shape
        a = factors.A.reshape(3, 8, layers, columns)
        expected = own[f"size_{kernel}"] * own[f"{kernel}_own"]
        expected = np.concatenate([expected, own[f"{kernel}_static_A"]], axis=1)
        for each in a:
            np.testing.assert_allclose(np.swapaxes(each, 0, 1), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["associations", "tokens", "static"])
def test_an_untrained_model_changes_nothing_and_gets_a_gradient(name, tiny, context):
    model = MODELS[name].build(_sizes(tiny))
    reads = MODELS[name].reads
    index = jnp.arange(3) if reads else jnp.zeros(3, int)
    tokens = jnp.asarray(TOKENS)

    @jax.jit
    def both(key):
        params = model.measured(model.init(key), tiny.params, tokens)

        def loss(params):
            logits = model.apply(tiny.params, model.write(params, context), tokens, index)
            return losses(logits, tokens, jnp.ones(tokens.shape, bool)).nats, logits

        (_, logits), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return logits, gradient, llama(tiny.config, tiny.params, tokens)

    logits, gradient, plain = both(jax.random.key(0))
    np.testing.assert_allclose(logits, plain, rtol=1e-5, atol=1e-5)
    assert any(np.any(leaf) for leaf in jax.tree.leaves(gradient))


def test_a_larger_static_adapter_has_as_many_parameters(tiny):
    sizes = _sizes(tiny)
    counts = {
        name: networks.trained(jax.eval_shape(MODELS[name].build(sizes).init, jax.random.key(0)))
        for name in MODELS
    }
    each = counts["static"] // sizes.rank
    most = max(counts["associations"], counts["gradients"])
    assert most <= counts["static_large"] < most + each
    assert counts["no_context"] == counts["associations"]


@pytest.mark.parametrize("name", ["associations", "gradients"])
def test_what_is_filled_up_has_no_influence(name, tiny, context):
    model = MODELS[name].build(_sizes(tiny))
    params = _trained(model, tiny)
    write = jax.jit(model.write)
    beyond = ~MASK

    def spoilt(x, axis):
        shape = [len(MASK)] + [1] * (x.ndim - 1)
        shape[axis] = MASK.shape[1]
        return jnp.where(beyond.reshape(shape), 7.0, x)

    other = Context(
        spoilt(context.states, 2),
        {kernel: spoilt(x, 2) for kernel, x in context.inputs.items()},
        context.mask,
        spoilt(context.errors, 2),
    )
    for got, expected in zip(
        *(jax.tree.leaves(write(params, each)) for each in (other, context)), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)


def test_mean_weights_are_the_mean_of_products():
    b, a = RANDOM.normal(size=(4, 6, 2)), RANDOM.normal(size=(4, 2, 5))
    (mean,) = evaluate.mean_adapter({"W": Factors(jnp.asarray(b), jnp.asarray(a))}).values()
    np.testing.assert_allclose(mean.B[0] @ mean.A[0], (b @ a).mean(0), rtol=1e-5, atol=1e-6)


# --- Measures -----------------------------------------------------------------------------------


def test_only_what_is_asked_for_counts():
    logits = RANDOM.normal(size=(3, 5, 7)).astype(np.float32)
    query = RANDOM.integers(0, 7, (3, 5))
    asked = np.zeros((3, 5), bool)
    asked[:, 3:] = True
    query[0, 3:] = logits[0, 2:4].argmax(-1)
    query[1, 4] = (logits[1, 3].argmax() + 1) % 7
    query[2, 3] = (logits[2, 2].argmax() + 1) % 7
    found = losses(jnp.asarray(logits), jnp.asarray(query), jnp.asarray(asked))
    shifted = np.log(np.exp(logits).sum(-1)) - np.take_along_axis(
        logits, np.roll(query, -1, 1)[..., None], -1
    )[..., 0]  # fmt: skip
    np.testing.assert_allclose(found.nats, shifted[:, 2:4].mean(), rtol=1e-5)
    np.testing.assert_allclose(found.exact, 1 / 3, rtol=1e-6)


def test_reading_is_reading_the_context_before_the_passage(corpus, tiny):
    task = Documents(corpus, 40, 12)
    drawn = list(evaluate.batches(task, evaluate.Condition(20), "test", 4))
    found = evaluate.frozen(tiny.config, tiny.params, iter(drawn))
    apply = jax.jit(functools.partial(llama, tiny.config))
    expected = []
    for batch in drawn:
        whole = np.concatenate([batch.context, batch.query], 1)
        logits = jax.nn.log_softmax(apply(tiny.params, whole))
        nats = -np.take_along_axis(logits[:, :-1], whole[:, 1:, None], -1)[:, 20:, 0]
        expected.append(nats.mean())
    np.testing.assert_allclose(found["in context"].nats, np.mean(expected), rtol=1e-4)
    assert found["without"].nats != found["in context"].nats


def test_conditions_have_room_for_their_facts(corpus, tiny):
    task = Needles(corpus, tiny.tokenizer, 100, facts=1, queries=1)
    found = evaluate.conditions(task, [60, 200, 400], [1, 4])
    assert [each.name for each in found] == ["100/1", "60/1", "200/1", "400/1", "200/4"]
    assert task.least(4) > 100
    documents = evaluate.conditions(Documents(corpus, 40, 12), [20, 40], [1])
    assert [each.name for each in documents] == ["40", "20"]


def test_the_share_is_beyond_the_better_static_adapter():
    def result(own, **others):
        by_control = {"own": own, **others}
        return {"test": {name: {"40": {"nats": nats}} for name, nats in by_control.items()}}

    results = {
        "associations": [result(2.5, other=3.1), result(2.0, other=3.0)],
        "static": [result(3.0), result(2.8)],
        "static_large": [result(2.9), result(2.9)],
    }
    frozen = {"in context": {"40": {"nats": 1.9}}, "without": {"40": {"nats": 3.5}}}
    found = study.shares(results, frozen, "40")["associations"]
    np.testing.assert_allclose(found["own"]["seeds"], [0.4, 0.8 / 0.9])
    np.testing.assert_allclose(found["other"]["seeds"], [-0.2, -0.2 / 0.9])
    worse = {"in context": {"40": {"nats": 3.3}}, "without": {"40": {"nats": 3.2}}}
    assert study.shares(results, worse, "40") == {}


# --- The command --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--models", "none"], "argument --models: expected any of gradients"),
        (["--questions", "2"], "argument --questions: expected at most --facts 1, got 2"),
        (["--test-lengths", "8190"], "argument --test-lengths: expected contexts and --passage"),
        (["--rank", "0"], "argument --rank: expected a whole number of at least 1"),
        (["--kernels", "v", "v"], "argument --kernels: got v+v; name each once"),
    ],
)
def test_mistakes_are_answered_at_once(flags, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as raised:
        parse(flags)
    assert raised.value.code == 2
    assert message in capsys.readouterr().err


def test_defaults_depend_on_the_task(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    documents, needles = parse([]), parse(["--task", "needles"])
    assert (documents.models[0], documents.rank, documents.out) == (
        "gradients",
        64,
        "results/documents",
    )
    assert (needles.models[0], needles.rank) == ("associations", 8)
    assert needles.out == "results/documents_task-needles"
    assert parse(["--task", "needles", "--rank", "64"]).out.endswith("_rank-64")


def _run(folder, gguf, out, *flags):
    command = [
        *(sys.executable, str(scripts.EXPERIMENTS / "documents.py")),
        *("--weights", str(gguf), "--texts", str(folder), "--out", str(out), "--jobs", "1"),
        *("--steps", "4", "--parts", "2", "--batch-size", "2", "--rank", "2", "--width", "8"),
        *("--length", "32", "--passage", "12", "--tests", "2", "--test-lengths", "24", *flags),
    ]
    return subprocess.run(
        command, env=scripts.environment(scripts.EXPERIMENTS), capture_output=True, text=True
    )


@pytest.mark.slow
@pytest.mark.parametrize("name", ["gradients", "associations"])
def test_a_study_from_training_to_answers(name, folder, gguf, tmp_path):
    models = ("--models", name, "static")
    done = _run(folder, gguf, tmp_path / "out", *models)
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    found = summary["results"][name]
    assert set(found["test"]) == {"own", "other", "mean"}
    assert list(found["validation"]) == ["2", "4"]
    assert f"written: {name}, of another context" in done.stdout
    assert "nats" in (tmp_path / "out" / "report.md").read_text()
    assert report.table(summary) in done.stdout
    assert (tmp_path / "out" / "lengths.png").is_file()

    # A part of it, gone on with: the same figures.
    (tmp_path / "out" / "summary.json").unlink()
    run = tmp_path / "out" / "runs" / f"{name}-seed0"
    first = json.loads((run / "result.json").read_text())["test"]
    (run / "result.json").unlink()
    assert _run(folder, gguf, tmp_path / "out", *models, "--resume").returncode == 0
    assert json.loads((run / "result.json").read_text())["test"] == first

    reader = open_reader(tmp_path / "out", weights=str(gguf))
    documents = ["w1 w2 w3 w4", "w5 w6 the thing in the end of w7"]
    adapters = reader.write(documents)
    own = [reader.write([each]) for each in documents]
    asked = ["w1 w", "the "]
    together = reader.complete(adapters, [*asked, "the "], [0, 1, -1], 4)
    alone = [
        reader.complete(each, [text], [0], 4)[0] for each, text in zip(own, asked, strict=True)
    ]
    assert together[:2] == alone
    with pytest.raises(ValueError, match=r"expected the number of an adapter for each of 2 texts"):
        reader.complete(adapters, asked, [0], 4)
    with pytest.raises(ValueError, match=r"expected a list of texts, none empty, got ''"):
        reader.write("")
    assert isinstance(reader, Reader)
    reader.save(adapters, 1, tmp_path / "peft")
    config = json.loads((tmp_path / "peft" / "adapter_config.json").read_text())
    assert config["r"] == 2
    assert config["target_modules"]
    with pytest.raises(ValueError, match="expected a finished run of a model that reads"):
        open_reader(tmp_path / "out", "static", weights=str(gguf))
