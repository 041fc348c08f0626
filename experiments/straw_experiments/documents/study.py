"""From settings to trained writers of adapters and the files that report them."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

from straw_experiments.documents import evaluate, figures, report, texts
from straw_experiments.documents.config import Config
from straw_experiments.documents.models import MODELS
from straw_experiments.documents.networks import Params, sizes_of
from straw_experiments.documents.tasks import Documents, Needles, Task
from straw_experiments.documents.texts import Corpus
from straw_experiments.documents.train import Losses, Recipe, Trainer, train
from straw_experiments.runner import records, runs, settings
from straw_experiments.runner import study as studies
from straw_experiments.runner.runs import FinalResult
from straw_experiments.runner.settings import check_same_data
from straw_experiments.runner.state import Variables
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds, statistic
from straw_experiments.smollm.weights import LanguageModel, load


def load_model(config: Config) -> LanguageModel:
    """Read the language model.

    Raises:
        ValueError: It cannot be had.
    """
    return load(config.weights, jnp.dtype(config.precision))


def make_task(config: Config, corpus: Corpus, model: LanguageModel) -> Task:
    """Make what the models are trained for.

    Raises:
        ValueError: The texts are too short.
    """
    if config.task == "documents":
        return Documents(corpus, config.length, config.passage)
    return Needles(corpus, model.tokenizer, config.length, config.facts, config.questions)


class Study(studies.Study[Trainer]):
    """All runs of a study, finished or not.

    Attributes:
        corpus: Its texts.
        language: The frozen model.
        task: What is trained for.
        tests: Contexts of so many tokens and facts; controls are for the first.

    Raises:
        ValueError: Texts or model cannot be had, or are others than before.
    """

    config: Config
    report = report

    def __init__(self, config: Config):
        super().__init__(config, config.models)
        self.language = load_model(config)
        self.corpus = texts.load(config.texts, self.language.tokenizer, config.tokens)
        self._described = self.corpus.description()  # a sum over all tokens
        check_same_data(config, self.data())
        self.task = make_task(config, self.corpus, self.language)
        self.tests = evaluate.conditions(self.task, config.test_lengths, config.test_facts)

    def data(self) -> Mapping[str, Any]:
        """Describe the texts."""
        return self._described

    @functools.cached_property
    def _weights(self) -> Params:
        return jax.tree.map(jnp.asarray, self.language.params)

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a model."""
        config = self.config
        sizes = sizes_of(self.language.config, settings.stored(config))
        rate = config.learning_rate * MODELS[name].rate
        recipe = Recipe(config.steps, config.parts, config.batch_size, rate)
        model = MODELS[name].build(sizes)
        return Trainer(name, model, sizes, self._weights, self.task, recipe)

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train and test a run, as far as that is still to be done."""
        del bar
        run, count = self.run(name, seed), self.config.tests
        tests = evaluate.Tests(run.trainer)
        validation = self.tests[0]

        def validate(params: Params) -> Losses:
            drawn = evaluate.batches(self.task, validation, "validation", count)
            return tests.own(params, drawn)

        def test(variables: Variables) -> FinalResult:
            params, reads = variables["params"], MODELS[name].reads
            found = evaluate.test(tests, params, self.tests, count, reads)
            measured = {"costs": self._costs(run.trainer, params)} if reads else {}
            own = found["own"][validation.name]
            line = f"test nats {own['nats']:.4f}, exact {own['exact']:.1%}"
            return FinalResult({"test": found, **measured}, line)

        return runs.execute(run, train(run.trainer, seed, run.title, validate), test)

    def _costs(self, trainer: Trainer, params: Params) -> dict[str, Any]:
        return {
            each.name: evaluate.costs(trainer, params, each)
            for each in self.tests
            if each.facts in (None, self.tests[0].facts)
        }

    def frozen(self) -> dict[str, Any]:
        """Return what the language model alone does in all tests; it is measured once."""
        path = Path(self.config.out) / "frozen.json"
        if records.is_made(path):
            return records.read_json(path)
        found: dict[str, dict[str, Any]] = {"without": {}, "in context": {}}
        for each in self.tests:
            drawn = evaluate.batches(self.task, each, "test", self.config.tests)
            measured = evaluate.frozen(self.language.config, self._weights, drawn)
            for way, value in measured.items():
                found[way][each.name] = value.plain()
        records.write_json(path, found)
        return found

    def cost(self, name: str) -> float:
        """Return how long a run takes beside others, roughly."""
        return 1.0 + MODELS[name].reads

    def description(self) -> Iterable[str]:
        """Describe texts and models, line by line."""
        found = self._described
        tokens, packages = found["tokens"], found["packages"]
        listed = ", ".join(
            f"{tokens[part]:,} tokens of {packages[part]} packages for {part}"
            for part in texts.PARTS
        )
        yield f"texts    {self.corpus.name}: {listed}"
        for name in self.names:
            yield f"model    {name}: {self.trainer(name).parameters():,} trained parameters"

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        return {
            "study": f"weights written from contexts: {self.config.task}",
            "texts": self._described,
            "tests": [each.name for each in self.tests],
        }

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each model, and of the frozen one."""
        frozen = self.frozen()
        return {
            "frozen": frozen,
            "results": {name: self._figures(name, group) for name, group in results.items()},
            "shares": shares(results, frozen, self.tests[0].name),
        }

    def _figures(self, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        measured = [each["costs"] for each in results if "costs" in each]
        return {
            "parameters": self.trainer(name).parameters(),
            "seconds": sum(each["seconds"] for each in results),
            "test": over_seeds([each["test"] for each in results]),
            "validation": over_seeds([self._validated(name, seed) for seed in self.seeds]),
            **({"costs": measured[0]} if measured else {}),
        }

    def _validated(self, name: str, seed: int) -> dict[str, Any]:
        """Return a run's measures of validation by steps taken."""
        history = self.run(name, seed).history()
        return {str(line["step"]): line["validation"] for line in history}

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw curves; return files by what they show."""
        del history
        return figures.draw(summary, Path(self.config.out))


def shares(results: Results, frozen: Mapping[str, Any], first: str) -> dict[str, Any]:
    """Return how much of the gain of reading written weights carry, beyond a static adapter.

    That is `(static - written) / (static - in context)` in nats, seed by seed; of the static
    adapters of a seed the better one counts.

    Args:
        results: Of each model, results by seed.
        frozen: Measures of the language model alone.
        first: Name of the test.

    Returns:
        By model that reads, and by whose weights: a statistic over seeds; nothing where there is
        no static adapter, or where reading gains nothing over one.
    """
    static = [name for name in results if MODELS[name].static]
    if not static:
        return {}
    read = frozen["in context"][first]["nats"]
    best = [
        min(each["test"]["own"][first]["nats"] for each in of_seed)
        for of_seed in zip(*(results[name] for name in static), strict=True)
    ]
    if min(best) <= read:  # reading gains nothing that could be shared
        return {}
    return {
        name: {
            control: statistic(
                [
                    (least - each["test"][control][first]["nats"]) / (least - read)
                    for least, each in zip(best, group, strict=True)
                ]
            )
            for control in group[0]["test"]
        }
        for name, group in results.items()
        if MODELS[name].reads
    }
