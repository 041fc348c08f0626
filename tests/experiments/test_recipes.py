"""What was published, as literal values: another epoch count, rate or pose range fails here."""

import importlib
import math

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from straw_experiments import data
from straw_experiments.char_lm.models import Sizes
from straw_experiments.char_lm.networks import make_model
from straw_experiments.char_lm.train import Recipe as TextRecipe
from straw_experiments.char_lm.train import Trainer
from straw_experiments.data.text import Text
from straw_experiments.fields.train import Recipe as FieldsRecipe
from straw_experiments.image_classification import networks
from straw_experiments.image_classification.models import build_model
from straw_experiments.image_classification.train import Recipe
from straw_experiments.reproduce import PARSERS, STUDIES
from straw_experiments.runner.state import cosine
from straw_experiments.weight_prediction.evaluate import TESTED
from straw_experiments.weight_prediction.networks import weight_predictor
from straw_experiments.weight_prediction.objectives import weights_objective
from straw_experiments.weight_prediction.train import Recipe as PredictionRecipe
from straw_jax.layers import bias_init, kernel_init
from straw_jax.models import CNN
from straw_jax.pose import PoseRange

# --- settings of the studies ------------------------------------------------------------------

_ARTICLE = {
    "dataset": "auto",
    "limit": None,
    "validation": None,
    "executor": "cnn",
    "encoder": "conv",
    "base": "none",
    "batch_size": 128,
    "learning_rate": 0.0001,
    "schedule": "constant",
    "precision": "float32",
}
SET_1 = {**_ARTICLE, "fraction": 1.0, "rank": 16, "epochs": 10}
SET_2 = {**_ARTICLE, "fraction": 0.1, "rank": 16, "epochs": 5}
SET_3 = {**_ARTICLE, "fraction": 0.2, "rank": 32, "epochs": 5}
COMPACT = {
    **_ARTICLE,
    "fraction": 0.1,
    "rank": 4,
    "epochs": 5,
    "base": "trained",
    "batch_size": 32,
    "learning_rate": 0.004,
    "schedule": "cosine",
}
VIT = {**COMPACT, "executor": "vit", "learning_rate": 0.001}
GENERATED = {**SET_2, "epochs": 10, "learning_rate": 0.002, "schedule": "cosine"}
WEIGHTS = {
    "predict": "weights",
    "networks": ["2-5-1", "4-10-1"],
    "pairs": [1.33, 2.0, 3.0],
    "predictors": ["mean"],
    "embedding": 128,
    "steps": 5000,
    "batch_size": 128,
    "learning_rate": 0.01,
    "optimizer": "muon",
}
NECESSITY = {
    "tasks": ["few_shot", "labels", "sine", "rotation", "signs", "cipher"],
    "methods": [
        *("static", "static_wide", "pooled", "bias", "gain", "low_rank", "shared_low_rank"),
        *("mixture", "pose", "whole", "delta", "delta_gain", "weight_rnn", "attention"),
        *("gradient", "neighbours"),
    ],
    "size": "small",
    "steps": 1_500,
    "batch_size": 16,
    "rates": [0.0003, 0.001, 0.003],
    "dataset": "auto",
    "text": None,
}
FIELDS = {
    "models": ["last", "last_heads"],
    "sizes": "784-384",
    "style": 384,
    "hidden": 128,
    "rank": 8,
    "steps": 500,
    "batch_size": 256,
    "pixels": 0,
    "learning_rate": 0.03,
    "base_rate": 0.0015,
    "generator_rate": 0.2,
    "fitted": 2,
    "dataset": "auto",
    "held_out": "auto",
    "precision": "float32",
}
MNIST = {"dataset": "mnist", "held_out": "emnist"}

OUTPUTS = {
    "predict": "outputs",
    "networks": ["2-5-1"],
    "pairs": [],
    "predictors": ["plain", "concat", "residual"],
    "steps": 10_000,
    "batch_size": 1024,
    "learning_rate": 0.01,
    "optimizer": "muon",
}
TABLES = {
    "models": ["straw", "shared"],
    "units": 128,
    "width": 64,
    "rows": 128,
    "steps": 2_400,
    "batch_size": 16,
    "learning_rate": 0.002,
    "sets": ["iris", "wine", "breast_cancer", "digits", "diabetes"],
    "splits": 5,
}
DOCUMENTS = {
    "task": "documents",
    "models": ["gradients", "static", "static_large"],
    "kernels": ["down"],
    "rank": 64,
    "width": 128,
    "steps": 120,
    "batch_size": 8,
    "length": 96,
    "passage": 64,
    "facts": 1,
    "questions": 1,
    "learning_rate": 0.003,
    "parts": 10,
    "texts": None,
    "tokens": 4_000_000,
    "tests": 128,
    "test_lengths": [32, 64, 128, 256],
    "test_facts": [1, 2, 4],
}
TEXT = {
    "text": None,
    "models": ["lstm", "ln_lstm", "hyper", "ln_hyper", "lowrank"],
    "parameters": 1_000_000,
    "hyper_features": 64,
    "embedding": 4,
    "rank": 1,
    "epochs": 2,
    "batch_size": 16,
    "length": 50,
    "learning_rate": 0.004,
    "dropout": 0.1,
    "sample_length": 400,
}

SMALL = ["standalone", "wide_dense", "wide_compute", "straw"]
TRAINED = ["wide_dense", "wide_compute", "straw"]
COMPACTS = ["compact_static", "compact_wide", "compact"]
GEOMETRICS = [
    "compact_static",
    "compact_augmented",
    "compact_fan",
    "compact_context",
    "geometric_stn",
    "geometric_refined",
    "geometric",
    "geometric_affine",
]

COMMANDS = {
    "": (SET_2, ["standalone", "straw"]),
    "--experiment full_rank16": (SET_1, ["standalone", "straw"]),
    "--experiment 10pct_rank16": (SET_2, ["standalone", "straw"]),
    "--experiment 20pct_rank32": (SET_3, ["standalone", "straw"]),
    "--fraction 1": (SET_1, ["standalone", "straw"]),
    "--preset compact": (COMPACT, COMPACTS),
    "--preset geometric": (COMPACT, GEOMETRICS),
    "--executor vit": (VIT, ["standalone", "straw"]),
}

_RANK = {**SET_2, "models": ["straw"]}
# Settings and number of seeds, by study.
PUBLISHED = {
    "set1": ({**SET_1, "models": SMALL}, 3),
    "set2": ({**SET_2, "models": SMALL}, 3),
    "set3": ({**SET_3, "models": SMALL}, 3),
    "set2_trained": ({**SET_2, "base": "trained", "models": TRAINED}, 3),
    "set3_trained": ({**SET_3, "base": "trained", "models": TRAINED}, 3),
    "set2_wide": ({**SET_2, "models": ["wide"]}, 1),
    "set1_resnet34": ({**SET_1, "models": ["resnet34"]}, 1),
    "set2_resnet34": ({**SET_2, "models": ["resnet34"]}, 1),
    "set3_resnet34": ({**SET_3, "models": ["resnet34"]}, 1),
    "preset1": ({**COMPACT, "fraction": 1.0, "epochs": 10, "models": COMPACTS}, 3),
    "preset2": ({**COMPACT, "models": COMPACTS}, 3),
    "kinds2": ({**COMPACT, "models": ["compact_shared", "compact_gain"]}, 3),
    "preset3": ({**COMPACT, "fraction": 0.2, "models": COMPACTS}, 3),
    "geometry3": ({**COMPACT, "fraction": 0.2, "models": GEOMETRICS}, 3),
    "geometry1": (
        {**COMPACT, "fraction": 1.0, "epochs": 3, "models": ["compact_static", "geometric"]},
        3,
    ),
    "trm2": ({**SET_2, "encoder": "trm", "models": ["straw"]}, 3),
    "vit2": ({**VIT, "models": ["standalone", "wide", "straw"]}, 3),
    "rank1": ({**_RANK, "rank": 1}, 1),
    "rank2": ({**_RANK, "rank": 2}, 1),
    "rank4": ({**_RANK, "rank": 4}, 1),
    "rank8": ({**_RANK, "rank": 8}, 1),
    "rank32": ({**_RANK, "rank": 32}, 1),
    "rank64": ({**_RANK, "rank": 64}, 1),
    "rank1_trained": ({**_RANK, "rank": 1, "base": "trained"}, 1),
    "rank2_trained": ({**_RANK, "rank": 2, "base": "trained"}, 1),
    "rank4_trained": ({**_RANK, "rank": 4, "base": "trained"}, 1),
    "rank8_trained": ({**_RANK, "rank": 8, "base": "trained"}, 1),
    "rank32_trained": ({**_RANK, "rank": 32, "base": "trained"}, 1),
    "rank64_trained": ({**_RANK, "rank": 64, "base": "trained"}, 1),
    "static_wrn": (
        {**GENERATED, "models": ["wrn_16_1", "wrn_16_1_narrow", "wrn_16_1_generated"]},
        1,
    ),
    "static_mnist": (
        {
            **GENERATED,
            "dataset": "mnist",
            "fraction": 1.0,
            "models": ["conv7", "conv7_narrow", "conv7_generated"],
        },
        3,
    ),
    "fields": ({**FIELDS, "models": ["last"], "fitted": 1, **MNIST}, 3),
    "fields_kinds": (
        {
            **FIELDS,
            "models": [
                *("last", "last_heads", "top", "biases", "ends"),
                *("lowrank", "lowrank_shared", "lowrank_tokens", "whole"),
            ],
            "sizes": "64-64",
            "steps": 400,
            "pixels": 98,
            "fitted": 0,
            **MNIST,
        },
        1,
    ),
    "weights_mean": (WEIGHTS, 3),
    "weights_attention": ({**WEIGHTS, "networks": ["4-10-1"], "predictors": ["attention"]}, 1),
    "weights_linear": ({**WEIGHTS, "networks": ["5-1"], "pairs": [0.6, 1.0, 2.0]}, 1),
    "weights_embedding64": (
        {**WEIGHTS, "networks": ["4-10-1"], "pairs": [3.0], "embedding": 64},
        1,
    ),
    "weights_embedding256": (
        {**WEIGHTS, "networks": ["4-10-1"], "pairs": [3.0], "embedding": 256},
        1,
    ),
    "weights_embedding512": (
        {**WEIGHTS, "networks": ["4-10-1"], "pairs": [3.0], "embedding": 512},
        1,
    ),
    "weights_adam": (
        {
            **WEIGHTS,
            "networks": ["4-10-1"],
            "pairs": [3.0],
            "optimizer": "adam",
            "learning_rate": 0.003,
        },
        1,
    ),
    "outputs": (OUTPUTS, 1),
    "tables": (TABLES, 3),
    "necessity": ({**NECESSITY, "dataset": "emnist"}, 3),
    "necessity_long": (
        {
            **NECESSITY,
            "dataset": "emnist",
            "tasks": ["few_shot", "labels"],
            "methods": [
                *("pooled", "bias", "gain", "low_rank", "shared_low_rank", "mixture", "whole"),
                "weight_rnn",
            ],
            "steps": 15_000,
            "rates": [0.001],
        },
        1,
    ),
    "necessity_large": (
        {
            **NECESSITY,
            "dataset": "emnist",
            "size": "large",
            "tasks": ["few_shot", "labels", "sine", "rotation", "signs"],
            "methods": [
                *("static", "static_wide", "gain", "low_rank", "pose", "delta", "delta_gain"),
                "attention",
            ],
            "rates": [0.001],
        },
        1,
    ),
    "needles": (
        {
            **DOCUMENTS,
            "task": "needles",
            "models": ["associations", "static"],
            "rank": 8,
            "steps": 300,
            "length": 64,
            "tests": 64,
            "test_lengths": [64, 128, 256, 512],
        },
        1,
    ),
    "documents": (
        {
            **DOCUMENTS,
            "models": ["gradients", "static"],
            "tests": 64,
            "test_lengths": [32, 96, 192],
        },
        3,
    ),
    "characters": (
        {**TEXT, "epochs": 1, "learning_rate": [0.004, 0.016, 0.016, 0.008, 0.004]},
        3,
    ),
    "characters_large": (
        {
            **TEXT,
            "models": ["lstm", "ln_lstm", "hyper", "ln_hyper"],
            "parameters": 4_250_000,
            "hyper_features": 132,
            "epochs": 20,
            "batch_size": 128,
            "length": 100,
            "learning_rate": 0.001,
        },
        1,
    ),
}


def settings(command, flags, names):
    """Return what a command line sets, in plain values."""
    found = PARSERS[command](flags.split())
    values = {name: getattr(found, name) for name in names}
    return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # an earlier run's results may lie in this folder


@pytest.mark.parametrize("flags", COMMANDS)
def test_commands_of_run_mean_what_was_published(flags):
    expected, names = COMMANDS[flags]
    expected = {**expected, "models": names, "seed": 0, "seeds": 1}
    assert settings("run", flags, expected) == expected


def test_every_study_is_pinned():
    assert PUBLISHED.keys() == STUDIES.keys()


@pytest.mark.parametrize("name", PUBLISHED)
def test_studies_are_those_that_were_published(name):
    expected, seeds = PUBLISHED[name]
    study = STUDIES[name]
    assert settings(study.command, study.flags, {**expected, "seed": 0}) == {**expected, "seed": 0}
    assert study.seeds == seeds


@pytest.mark.parametrize(
    ("command", "flags", "expected"),
    [
        ("weight-prediction", "", WEIGHTS),
        ("weight-prediction", "--predict outputs", OUTPUTS),
        ("char-lm", "", TEXT),
        ("tables", "", TABLES),
        ("documents", "", DOCUMENTS),
        ("fields", "", FIELDS),
        ("necessity", "", NECESSITY),
        (
            "char-lm",
            "--parameters 250000",
            {**TEXT, "parameters": 250_000, "hyper_features": 32},
        ),
    ],
)
def test_usual_settings_of_the_other_commands(command, flags, expected):
    expected = {**expected, "seed": 0, "seeds": 1}
    assert settings(command, flags, expected) == expected


# --- how models are trained -------------------------------------------------------------------


def test_cosine_rises_for_a_tenth_and_falls_to_zero():
    rates = [float(cosine(0.004, 200)(step)) for step in (0, 5, 10, 20, 65, 110, 155, 200)]
    falling = [0.5 + 0.5 * math.cos(math.pi * part) for part in (0.25, 0.5, 0.75)]
    expected = [0.0, 0.25, 0.5, 1.0, *falling, 0.0]
    np.testing.assert_allclose(rates, 0.004 * np.array(expected), atol=1e-9)


GRADIENTS = np.array([[1.0, -0.3, 1e-8, 3e-7], [-0.5, 0.2, 2e-8, 1e-7], [0.1, 0.9, 0.0, 1e-8]])


def adam(gradients, rates):
    """Sum Adam's changes, beta 0.9 and 0.999, epsilon 1e-8."""
    m = v = total = np.zeros(gradients.shape[1])
    for t, (gradient, rate) in enumerate(zip(gradients, rates, strict=True), start=1):
        m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
        total = total - rate * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
    return total


def changes(optimizer, gradients):
    """Sum the changes that an optimizer makes."""
    params = jnp.zeros(gradients.shape[1], jnp.float32)
    state = optimizer.init(params)
    with jax.numpy_dtype_promotion("standard"):  # Adam raises a float to an integer
        for gradient in jnp.asarray(gradients, jnp.float32):
            update, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, update)
    return params


def text_trainer(rate=0.01):
    model = make_model("lstm", 2, Sizes(3, 1, 1, 1))
    numbers = np.zeros(31, np.uint8)  # 3 steps of 2 pieces of 5 characters
    return Trainer("lstm", model, model, Text("", "abc", *[numbers] * 3), TextRecipe(1, 2, 5, rate))


@pytest.mark.parametrize(
    ("optimizer", "rates"),
    [
        (Recipe(1, 128, 1e-4, "constant").optimizer(384), [1e-4] * 3),
        (Recipe(1, 10, 4e-3, "cosine").optimizer(30), [0.0, 4e-3, 2e-3]),
        (PredictionRecipe(3, 128, 1e-2, "adam").make_optimizer(), [0.0, 1e-2, 5e-3]),
        (text_trainer().optimizer, [0.0, 1e-2, 5e-3]),
    ],
    ids=["images", "images by cosine", "weights", "text"],
)
def test_models_are_trained_with_adam(optimizer, rates):
    np.testing.assert_allclose(
        changes(optimizer, 0.1 * GRADIENTS), adam(0.1 * GRADIENTS, rates), rtol=2e-5
    )


def test_gradients_of_text_have_norm_1_at_most():
    optimizer = text_trainer().optimizer
    long = GRADIENTS * np.array([[30.0], [20.0], [1.0]])
    clipped = long / np.maximum(np.linalg.norm(long, axis=1, keepdims=True), 1.0)
    expected = adam(clipped, [0.0, 1e-2, 5e-3])
    np.testing.assert_allclose(changes(optimizer, long), expected, rtol=2e-5)


def test_muon_makes_kernels_orthogonal_and_moves_biases_as_adam_does():
    optimizer = PredictionRecipe(11, 128, 1e-2, "muon").make_optimizer()
    rng = np.random.default_rng(0)
    gradient = {
        "kernel": jnp.asarray(rng.standard_normal((6, 4)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(4), jnp.float32),
    }
    state = optimizer.init(gradient)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(3):  # the third step is the first at the full rate
            update, state = optimizer.update(gradient, state, gradient)
    singular = np.linalg.svd(update["kernel"], compute_uv=False)
    assert (singular / 1e-2 > 0.6).all()
    assert (singular / 1e-2 < 1.6).all()
    np.testing.assert_allclose(update["bias"], -1e-2 * np.sign(gradient["bias"]), rtol=0.1)


@pytest.mark.parametrize(("own", "rate"), [(None, 1e-2), (0.2, 0.2)])
def test_writers_of_fields_are_trained_at_a_rate_for_each_part(own, rate):
    optimizer = FieldsRecipe(11, 4, 0, 1e-2, 1e-3, own).make_optimizer()
    kernel = jnp.asarray(np.random.default_rng(0).standard_normal((6, 4)), jnp.float32)
    gradient = {part: {"kernel": kernel} for part in ("encoder", "generator", "executor")}
    state = optimizer.init(gradient)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        for _ in range(3):  # the third step is the first at the full rate
            update, state = optimizer.update(gradient, state, gradient)
    for part, expected in (("encoder", 1e-2), ("executor", 1e-3), ("generator", rate)):
        singular = np.linalg.svd(update[part]["kernel"], compute_uv=False) / expected
        if part == "generator" and own:  # Adam
            np.testing.assert_allclose(update[part]["kernel"], -own * np.sign(kernel), rtol=0.1)
        else:
            assert ((singular > 0.6) & (singular < 1.6)).all()


def test_initial_weights_are_uniform_as_pytorch_has_them():
    kernel = kernel_init(jax.random.key(0), (5, 5, 4, 300))  # fan in 100
    bias = bias_init(25)(jax.random.key(1), (30_000,))
    for values, bound in ((kernel, 0.1), (bias, 0.2)):
        assert 0.999 * bound < float(jnp.abs(values).max()) <= bound
        assert float(values.std()) == pytest.approx(bound / math.sqrt(3), rel=0.02)


def test_executor_drops_a_quarter_and_a_half():
    rates = []

    def record(call, arguments, options, context):
        if isinstance(context.module, nn.Dropout):
            rates.append(context.module.rate)
        return call(*arguments, **options)

    rngs = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    with nn.intercept_methods(record):
        jax.eval_shape(lambda: CNN(47).init(rngs, jnp.zeros((1, 28, 28, 1)), train=True))
    assert rates == [0.25, 0.5]


# --- models -----------------------------------------------------------------------------------

# Trained parameters, by what they are trained with.
PARAMETERS = {
    (47, 16, "none", "cnn"): {
        "standalone": 1_204_655,
        "wide_dense": 20_603_471,
        "wide_compute": 2_498_447,
        "wide": 20_566_692,
        "straw": 20_606_863,
        "resnet34": 21_299_951,
    },
    (47, 16, "trained", "cnn"): {"straw": 21_811_518},
    (47, 32, "none", "cnn"): {"straw": 41_065_231},
    (47, 4, "trained", "cnn"): {
        "compact_static": 147_087,
        "compact_wide": 347_263,
        "compact": 342_702,
        "compact_shared": 196_030,
        "compact_gain": 191_181,
        "compact_augmented": 147_087,
        "compact_fan": 147_087,
        "compact_context": 478_685,
        "geometric_stn": 275_726,
        "geometric_refined": 275_726,
        "geometric": 275_726,
        "geometric_affine": 418_698,
    },
    (47, 4, "trained", "vit"): {"standalone": 225_071, "wide": 584_111, "straw": 569_487},
    (47, 16, "none", "trm"): {"straw": 20_596_111, "wide": 20_566_692},
    (47, 4, "trained", "trm"): {"compact": 407_134},
    (47, 4, "trained", "vit trm"): {"straw": 633_919},
    (10, 16, "none", "cnn"): {"conv7": 21_210, "conv7_narrow": 8_848, "conv7_generated": 12_910},
    (47, 16, "none", "wrn"): {
        "wrn_16_1": 177_183,
        "wrn_16_1_narrow": 11_883,
        "wrn_16_1_generated": 14_671,
    },
}


def model_of(name, classes=47, rank=4, base="trained", network="cnn"):
    sizes = {"classes": classes, "rank": rank, "base": base}
    sizes["executor"] = "vit" if "vit" in network else "cnn"
    sizes["encoder"] = "trm" if "trm" in network else "conv"
    return build_model(name, **sizes)


@pytest.mark.slow
@pytest.mark.parametrize("trained", PARAMETERS, ids=str)
def test_models_have_the_published_number_of_parameters(trained):
    expected = PARAMETERS[trained]
    assert {name: networks.parameters(model_of(name, *trained)) for name in expected} == expected


def test_published_numbers_of_parameters_are_those_of_the_layers():
    article, vit = PARAMETERS[47, 16, "none", "cnn"], PARAMETERS[47, 4, "trained", "vit"]
    encoder = 9 * 16 + 9 * 16 * 32 + 9 * 32 * 32 + 2 * (16 + 32 + 32) + 4 * 4 * 32 * 32 + 32
    generator = (32 + 1) * 16 + (16 + 1) * 4 * 4 * (4 * 128 + 2 * 320)
    assert vit["straw"] == vit["standalone"] + encoder + generator
    usual, trm = 9 * 16 + 9 * 16 * 32 + 48 + (1568 + 1) * 64, 94_464
    assert PARAMETERS[47, 16, "none", "trm"]["straw"] == article["straw"] - usual + trm


def test_published_controls_are_as_large_as_straw():
    for trained, straw, control, rel in (
        ((47, 16, "none", "cnn"), "straw", "wide", 0.03),
        ((47, 16, "none", "cnn"), "straw", "wide_dense", 0.03),
        ((47, 16, "none", "trm"), "straw", "wide", 0.01),
        ((47, 4, "trained", "cnn"), "compact", "compact_wide", 0.03),
        ((47, 4, "trained", "vit"), "straw", "wide", 0.05),
    ):
        sizes = PARAMETERS[trained]
        assert sizes[control] == pytest.approx(sizes[straw], rel=rel)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("geometric", (60.0, 1.0, 0.0, 0.0, 0.25)),
        ("geometric_refined", (60.0, 1.0, 0.0, 0.0, 0.25)),
        ("compact_context", (60.0, 1.0, 0.0, 0.0, 0.25)),
        ("compact_augmented", (60.0, 1.0, 0.0, 0.0, 0.25)),
        ("geometric_affine", (60.0, 1.4, 0.4, 0.1, 0.25)),
        ("geometric_stn", None),
    ],
)
def test_models_are_trained_in_the_published_poses(name, expected, monkeypatch):
    drawn, draw = [], PoseRange.draw
    monkeypatch.setattr(
        PoseRange, "draw", lambda self, *arguments: (drawn.append(self), draw(self, *arguments))[1]
    )
    model, images, key = model_of(name), jnp.zeros((2, 28, 28, 1)), jax.random.key(0)

    def step():
        variables = model.init(key, images)
        if model.unlabelled is not None:
            model.unlabelled(variables, images, key)
        return model.apply(variables, images, key)

    jax.eval_shape(step)
    assert drawn == ([] if expected is None else [expected])


def test_fan_is_of_nine_rotations(monkeypatch):
    angles, affine = [], networks.affine
    monkeypatch.setattr(networks, "affine", lambda each: (angles.append(each), affine(each))[1])
    model_of("compact_fan")
    np.testing.assert_array_equal(angles, [[-60, -45, -30, -15, 0, 15, 30, 45, 60]])


def test_predicted_weights_are_judged_by_64_inputs_of_8192_networks():
    objective = weights_objective((2, 5, 1), 20, straw=weight_predictor((2, 5, 1)))
    context, fresh = jax.eval_shape(lambda: objective.draw(jax.random.key(0), 3))
    assert context.x.shape == (3, 20, 2)
    assert fresh.x.shape == (3, 64, 2)
    assert TESTED == 8192


# --- data -------------------------------------------------------------------------------------


def test_images_are_normalised_as_mnist_is():
    np.testing.assert_allclose(
        data.normalise(np.array([0, 51, 255], np.uint8)),
        [-0.1307 / 0.3081, (0.2 - 0.1307) / 0.3081, (1 - 0.1307) / 0.3081],
        rtol=1e-6,
    )


@pytest.mark.parametrize(
    ("changed", "low", "high", "first"),
    [
        ("rotate", -60.0, 60.0, [16.435402, -27.625594, -55.083177]),
        ("blur", 0.1, 2.0, [1.790504, 1.158562, 1.621725]),
    ],
)
def test_test_images_are_changed_by_the_published_amounts(changed, low, high, first, monkeypatch):
    module, found = importlib.import_module("straw_experiments.data.variants"), []
    change = getattr(module, changed)
    monkeypatch.setattr(
        module, changed, lambda images, by: (found.append(by), change(images, by))[1]
    )
    data.variants(np.zeros((10_000, 3, 3, 1), np.uint8))
    (amounts,) = found
    np.testing.assert_allclose(amounts[:3], first, rtol=1e-6)
    assert amounts.min() >= low
    assert amounts.max() <= high
    span = high - low
    assert amounts.min() - low < 0.001 * span > high - amounts.max()
