"""From settings to trained models and the files that report them."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from straw_experiments.runner import study as studies
from straw_experiments.runner.study import Results
from straw_experiments.runner.tables import over_seeds
from straw_experiments.table_classification import analysis, figures, report
from straw_experiments.table_classification.config import Config
from straw_experiments.table_classification.models import MODELS
from straw_experiments.table_classification.objective import Params
from straw_experiments.table_classification.train import Recipe, Trainer, train_and_test


class Study(studies.Study[Trainer]):
    """All runs of a study, finished or not."""

    config: Config
    report = report

    def __init__(self, config: Config):
        super().__init__(config, config.models)

    def make_trainer(self, name: str) -> Trainer:
        """Make what trains a model."""
        config = self.config
        straw = MODELS[name].build(config.rows, width=config.width, units=config.units)
        recipe = Recipe(config.steps, config.batch_size, config.rows, config.learning_rate)
        return Trainer(name, straw, recipe)

    def execute(self, name: str, seed: int, *, bar: bool = True) -> dict[str, Any]:
        """Train and test a run, as far as that is still to be done; the first tests rivals, too."""
        del bar

        def analyse(params: Params) -> dict[str, Any]:
            found = analysis.test(self.trainer(name).straw, params, self.config, seed)
            if name == self.names[0]:
                found["rivals"] = analysis.test_rivals(self.config, seed)
            return found

        return train_and_test(self.run(name, seed), analyse)

    def cost(self, name: str) -> float:
        """Return about how long a run takes beside others: as long as they."""
        del name
        return 1.0

    def description(self) -> Iterable[str]:
        """Describe the study and its models, line by line."""
        config = self.config
        yield f"study    classifiers of tables; {config.batch_size:,} new synthetic tables a step"
        yield f"test     {', '.join(config.tested_sets) or 'synthetic tables only'}"
        for name in self.names:
            yield f"model    {name}: {self.trainer(name).parameters():,} trained parameters"

    def facts(self) -> Mapping[str, Any]:
        """Return what the summary says first."""
        return {"study": "classifiers of tables", "rows": self.config.shown_rows}

    def figures(self, results: Results) -> Mapping[str, Any]:
        """Return what the summary says of each model, of rivals, and of their ranks."""
        rivals = [result["rivals"] for result in results[self.names[0]]]
        found: dict[str, Any] = {
            "results": {
                name: {
                    "parameters": self.trainer(name).parameters(),
                    "seconds": sum(each["seconds"] for each in group),
                    "curve": over_seeds([self._curve(name, seed) for seed in self.seeds]),
                    **over_seeds([_measured(each) for each in group]),
                }
                for name, group in results.items()
            },
            "rivals": over_seeds(rivals),
        }
        if self.config.tested_sets:
            ranks = []
            for number, of_seed in enumerate(rivals):
                ours = {name: group[number]["accuracy"] for name, group in results.items()}
                theirs = {name: each["accuracy"] for name, each in of_seed.items()}
                ranks.append(analysis.mean_ranks({**ours, **theirs}))
            found["ranks"] = over_seeds(ranks)
        return found

    def _curve(self, name: str, seed: int) -> dict[str, float]:
        """Return accuracy on synthetic tables by the number of tables seen in training."""
        lines = self.run(name, seed).history()
        batch = self.config.batch_size
        return {str(batch * line["step"]): line["validation"]["accuracy"] for line in lines}

    def draw(
        self, summary: Mapping[str, Any], history: Sequence[Mapping[str, Any]]
    ) -> Mapping[str, str]:
        """Draw accuracies; return files by what they show."""
        return figures.draw(summary, history, Path(self.config.out))


def _measured(result: Mapping[str, Any]) -> dict[str, Any]:
    return {name: each for name, each in result.items() if name not in ("seconds", "rivals")}
