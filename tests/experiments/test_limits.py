"""What needs more memory than there is, by the least estimate, is refused."""

import os
import re

import pytest
import scripts

from straw_experiments.char_lm.config import check_step
from straw_experiments.char_lm.config import configure as configure_text
from straw_experiments.image_classification import command as images
from straw_experiments.image_classification.config import parse
from straw_experiments.image_classification.models import MODELS, build_model
from straw_experiments.image_classification.networks import parameters
from straw_experiments.runner import limits
from straw_experiments.weight_prediction import command as weights
from straw_experiments.weight_prediction.config import configure


@pytest.mark.parametrize(
    ("needs", "shown"), [(1001, "1 kB"), (2.5e9, "2.5 GB"), (1.38e17, "138 PB"), (1e31, "1e+13 EB")]
)
def test_messages_say_what_is_needed_and_what_there_is(monkeypatch, needs, shown):
    monkeypatch.setattr(limits, "memory", lambda: 1000)
    told = rf"x: 3 needs at least {re.escape(shown)} of memory for it, this machine has 1 kB; give"
    with pytest.raises(ValueError, match=told):
        limits.check("x: 3", needs, "it")
    limits.check("x: 3", 1000, "it")
    limits.check("x: 3", needs, "it", machines=10**30)


def test_accelerators_have_memory_of_their_own(monkeypatch):
    own = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    monkeypatch.delenv("JAX_PLATFORMS", raising=False)
    monkeypatch.setattr(limits, "find_spec", lambda name: None)
    assert limits.memory() == own
    monkeypatch.setattr(limits, "find_spec", lambda name: name == "jax_plugins" or None)
    assert limits.memory() >= own + 10**12
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    assert limits.memory() == own


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "executor"),
    [
        ("straw", "cnn"),
        ("straw", "vit"),
        ("compact", "cnn"),
        ("compact_shared", "cnn"),
        ("compact_context", "cnn"),
    ],
)
def test_each_rank_adds_as_many_weights_as_models_say(name, executor):
    def count(rank, size):
        image = (size, size, 1)
        sizes = {"classes": 2, "base": "trained", "executor": executor, "image": image}
        return parameters(build_model(name, rank=rank, **sizes), image)

    said = MODELS[name].weights_a_rank[executor]
    assert said <= count(5, 8) - count(4, 8) < 1.2 * said


def test_models_that_follow_the_rank_say_so():
    wide = {name for name in MODELS if name.startswith(("wide", "compact_wide"))}
    assert {name for name, model in MODELS.items() if model.weights_a_rank} == {
        *("straw", "compact", "compact_shared", "compact_context"),
        *wide,
    }


def test_published_sizes_fit_a_small_machine(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)  # where no earlier run is
    monkeypatch.setattr(limits, "memory", lambda: 4 * 10**9)
    for words in ("", "--rank 64", "--batch-size 512", "--seeds 3 --jobs 8"):
        parse(words.split())
    for given in ({}, {"predict": "outputs"}, {"embedding": 512}):
        configure(given)
    configure_text({})


def test_weights_are_counted_before_training(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    config = configure({"networks": ["2-5-1"], "pairs": [2.0]})
    monkeypatch.setattr(limits, "memory", lambda: 10**5)
    with pytest.raises(ValueError, match=r"model mean_2-5-1_30 needs at least .* trained weights"):
        weights._load(config)


@pytest.mark.filterwarnings("ignore:.*is not the official EMNIST archive")
def test_images_are_counted_by_their_pixels(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    scripts.write_archive(tmp_path / "tiny.zip")
    given = ["--archive", "tiny.zip", "--data-dir", ".", "--models", "standalone"]
    large, small = (parse([*given, "--batch-size", size]) for size in ("10000", "16"))
    monkeypatch.setattr(limits, "memory", lambda: 2 * 10**9)
    with pytest.raises(ValueError, match=r"--batch-size: 10000 needs at least 2.35 GB of memory"):
        images._load(large)
    monkeypatch.setattr(limits, "memory", lambda: 10**7)
    with pytest.raises(ValueError, match=r"model standalone needs at least .* trained weights"):
        images._load(small)


def test_gates_are_counted_by_the_length_of_the_state():
    config = configure_text({"batch_size": 10**6})
    check_step(config, 1)
    with pytest.raises(ValueError, match="argument --batch-size: 1000000 times --length 50 needs"):
        check_step(config, 10**9)
