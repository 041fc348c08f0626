"""From settings to trained models of text and the files that report them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.char_lm import figures, report
from straw_experiments.char_lm.analysis import CONTROLS, analyse
from straw_experiments.char_lm.config import Config
from straw_experiments.char_lm.models import MODELS, Sizes
from straw_experiments.char_lm.networks import (
    breakdown,
    features_for,
    make_model,
    multiply_adds,
)
from straw_experiments.char_lm.train import Recipe, Trainer, train_and_test
from straw_experiments.data import text as texts
from straw_experiments.data.text import Text
from straw_experiments.runner import records
from straw_experiments.runner import study as studies
from straw_experiments.runner.runs import Run
from straw_experiments.runner.settings import check_same_data
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds


def load_text(config: Config) -> Text:
    """Read the text of a study, and check that it is long enough.

    Raises:
        ValueError: It cannot be had, is too short, or is not the one that `config.out` has results
            of.
    """
    found = texts.load(config.text, config.data_dir)
    texts.check_length(found, config.batch_size, config.length)
    check_same_data(config, _description(found))
    return found


class Study(studies.Study[Trainer]):
    """All runs of a study, finished or not.

    Attributes:
        text: What is modelled.
        sizes: Of all models.
        features: Length of the main state, by name of the model.

    Raises:
        ValueError: A model has more parameters than it may, however short its state.
    """

    config: Config
    report = report

    def __init__(self, config: Config, text: Text):
        super().__init__(config, config.models)
        self.text = text
        self.sizes = Sizes(
            len(text.characters),
            config.hyper_features,
            config.embedding,
            config.rank,
            config.precision,
        )
        self.features = {
            name: features_for(name, config.parameters, self.sizes) for name in config.models
        }

    @property
    def arguments(self) -> tuple[Config, Text]:
        """What another process makes the same study from."""
        return self.config, self.text

    def data(self) -> Mapping[str, Any]:
        """Describe the text."""
        return _description(self.text)

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a model."""
        config, features = self.config, self.features[name]
        model = make_model(name, features, self.sizes)
        training_model = make_model(name, features, self.sizes, dropout=config.dropout, train=True)
        rate = config.learning_rate
        if isinstance(rate, list):
            rate = rate[self.names.index(name)]
        recipe = Recipe(config.epochs, config.batch_size, config.length, rate)
        return Trainer(name, model, training_model, self.text, recipe)

    def is_finished(self, name: str, seed: int) -> bool:
        """Say whether `execute` has nothing to do."""
        run = self.run(name, seed)
        return run.is_tested() and (not MODELS[name].modulated or _is_analysed(run))

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train, test and analyse a run, as far as that is still to be done."""
        del bar
        run = self.run(name, seed)
        result = train_and_test(run, self.config.sample_length)
        if not MODELS[name].modulated:
            return result
        # In a file of its own: to be done again, it needs no training.
        if not _is_analysed(run):
            params = run.placed_variables()["params"]
            records.write_json(_analysed(run), analyse(run.trainer, params, seed))
        return {**result, "examined": records.read_json(_analysed(run))}

    def cost(self, name: str) -> float:
        """Return how long a run takes beside others, roughly."""
        return 1.0 + MODELS[name].modulated

    def description(self) -> Iterable[str]:
        """Describe text and models, line by line."""
        read = self.text
        yield (
            f"text     {read.name}: {len(read.train):,} characters of training,"
            f" {len(read.validation):,} of validation, {len(read.test):,} of test,"
            f" {len(read.characters)} different ones"
        )
        for name, features in self.features.items():
            trainer = self.trainer(name)
            yield (
                f"model    {name}: {features} units, {trainer.parameters():,} trained parameters,"
                f" {multiply_adds(trainer.model):,} multiply-adds a character"
            )

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        return {
            "study": "character-level language modelling",
            "text": self.text.name,
            "characters": {
                "different": len(self.text.characters),
                "train": len(self.text.train),
                "validation": len(self.text.validation),
                "test": len(self.text.test),
            },
        }

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each model."""
        return {"results": {name: self._figures(name, group) for name, group in results.items()}}

    def _figures(self, name: str, results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        trainer = self.trainer(name)
        seconds = sum(result["seconds"] for result in results)
        recipe = trainer.recipe
        characters = recipe.epochs * trainer.steps_per_epoch * recipe.batch_size * recipe.length
        analysed = [result["examined"] for result in results if "examined" in result]
        found = {}
        if analysed:
            measures = [{key: each[key] for key in ("controls", "movement")} for each in analysed]
            found = {"examined": {**over_seeds(measures), "stretch": analysed[0]["stretch"]}}
        return {
            "features": self.features[name],
            "parameters": breakdown(trainer.state_like.variables["params"]),
            "multiply_adds": multiply_adds(trainer.model),
            "characters": characters,
            "characters_per_second": characters * len(results) / seconds,
            "seconds": seconds,
            "bits": over_seeds([result["bits"] for result in results]),
            "samples": [result["sample"] for result in results],
            **found,
        }

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw curves and movements; return files by what they show."""
        return figures.draw(summary, history, Path(self.config.out))


def _analysed(run: Run[Trainer]) -> Path:
    """Name the file of the analysis, beside the run's result; the name is that of stored runs."""
    return run.result.with_name("examined.json")


def _is_analysed(run: Run[Trainer]) -> bool:
    """Say whether a run has been analysed with all controls: an earlier version had fewer."""
    path = _analysed(run)
    return records.is_made(path) and set(CONTROLS) <= set(records.read_json(path)["controls"])


def _description(text: Text) -> dict[str, Any]:
    return {
        "name": text.name,
        "train": len(text.train),
        "validation": len(text.validation),
        "test": len(text.test),
        "sha256": text.sha256(),
    }
