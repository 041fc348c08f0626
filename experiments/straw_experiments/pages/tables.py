"""Tables of the other studies: weight prediction, characters, and how each study was run."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeAlias

from straw_experiments.char_lm.models import MODELS as CELLS
from straw_experiments.char_lm.published import BITS
from straw_experiments.pages.stored import Results
from straw_experiments.runner.tables import (
    duration,
    markdown_table,
    mean_std,
    readable_count,
    statistic,
)
from straw_experiments.weight_prediction.published import EXPLAINED, OUTPUT_LOSS

Cells: TypeAlias = Mapping[str, Mapping[str, Any]]
"""Trained predictors of one or several studies, by name."""

# --- weight prediction --------------------------------------------------------------------------

_USUAL = {"embedding": 128, "optimizer": "muon"}
_BELOW = "below 0"  # how far below says nothing more


def prediction_cells(results: Results, predict: str, *, unusual: bool = True) -> Cells:
    """Put the predictors of all studies together: by network and predictor, unusual ones last.

    Args:
        results: What the studies left.
        predict: "weights" or "outputs".
        unusual: Whether those with another embedding or optimizer than usual are wanted, too.
    """
    found = []
    for study, summary in results.summaries.items():
        config = summary["config"]
        if config.get("predict") != predict:
            continue
        differs = [_setting(name, config) for name in _USUAL if config[name] != _USUAL[name]]
        if differs and not unusual:
            continue
        for name, each in summary["results"].items():
            label = ", ".join([each["predictor"], *differs])
            attention = each["predictor"] == "attention"
            order = each["unknowns"], bool(differs), attention, config["embedding"]
            found.append((order, f"{study}/{name}", {**each, "predictor": label}))
    return {name: each for _, name, each in sorted(found, key=lambda cell: cell[0])}


def _setting(name: str, config: Mapping[str, Any]) -> str:
    value = config[name]
    return f"{name} {value}" if isinstance(value, int) else value


def weights_table(results: Results, *, unusual: bool) -> str:
    """Lay out what predicted weights explain, beside the post's figures.

    Args:
        results: What the studies left.
        unusual: Whether to show those with another embedding or optimizer than usual, or the rest.
    """
    usual = prediction_cells(results, "weights", unusual=False)
    every = prediction_cells(results, "weights")
    table = [
        [
            f"{each['network']}, {each['unknowns']} unknowns",
            each["predictor"],
            str(each["pairs"]),
            explained(each["explained"]),
            _the_posts(each),
            readable_count(each["parameters"]),
            _time_a_run(each),
        ]
        for name, each in every.items()
        if (name in usual) != unusual
    ]
    header = ["networks", "predictor", "pairs", "explained, %", "the post, %", "parameters"]
    return markdown_table([*header, "time a run"], table)


def _the_posts(each: Mapping[str, Any]) -> str:
    """The post's share, with what ours is above it in percentage points."""
    theirs = EXPLAINED.get((each["unknowns"], each["pairs"]))
    if theirs is None:
        return "-"
    return f"{100 * theirs:.1f} ({100 * (each['explained']['mean'] - theirs):+.1f})"


def _time_a_run(each: Mapping[str, Any]) -> str:
    return duration(each["seconds"] / len(each["loss"]["seeds"]))


def outputs_table(results: Results) -> str:
    """Lay out how well outputs are predicted from weights and an input."""
    table = [
        [
            each["predictor"],
            explained(each["explained"]),
            mean_std(each["loss"], 1, 5),
            f"{OUTPUT_LOSS[each['predictor']]:g}" if each["predictor"] in OUTPUT_LOSS else "-",
            readable_count(each["parameters"]),
            _time_a_run(each),
        ]
        for each in prediction_cells(results, "outputs").values()
    ]
    header = ["predictor", "explained, %", "loss", "the post's loss", "parameters", "time a run"]
    return markdown_table(header, table)


def explained(figure: Mapping[str, Any], digits: int = 2) -> str:
    """Write a share of variance in per cent."""
    return _BELOW if figure["mean"] < 0 else mean_std(figure, 100, digits)


def _inputs(found: Mapping[str, Any]) -> dict[str, str]:
    shares = {
        f"{title}: {name}": explained(figure, 1)
        for key, title in (("fresh inputs", "test inputs"), ("context inputs", "pairs"))
        for name, figure in found[key].items()
    }
    return {**shares, "pairs of another network": explained(found["other task"])}


def _sizes(found: Mapping[str, Any]) -> dict[str, str]:
    best = found.get("least squares", {})
    return {
        f"{n} pairs": explained(figure, 1) + (f" ({explained(best[n], 1)})" if n in best else "")
        for n, figure in found["pairs"].items()
    }


def _fits(found: Mapping[str, Any]) -> dict[str, str]:
    return {
        f"from {start} weights, steps: {steps}": f"{explained(each['explained'], 1)}; "
        f"{mean_std(each['solved'], 100, 0)}"
        for start, by_steps in found["fit"].items()
        for steps, each in by_steps.items()
    }


def _units(found: Mapping[str, Any]) -> dict[str, str]:
    return {name: mean_std(figure, 100, 1) for name, figure in found.get("units", {}).items()}


_TESTS: dict[str, Callable[[Mapping[str, Any]], dict[str, str]]] = {
    "inputs": _inputs,
    "sizes": _sizes,
    "fits": _fits,
    "units": _units,
}


def predictor_test_table(results: Results, test: str, network: str) -> str:
    """Lay out what was found of mean-pooled predictors of a network's weights.

    Args:
        results: What the studies left.
        test: A key of `_TESTS`.
        network: Such as "2-5-1".
    """
    cells = [
        each
        for each in prediction_cells(results, "weights", unusual=False).values()
        if each["network"] == network and each["predictor"] == "mean"
    ]
    found = [_TESTS[test](each["examined"]) for each in cells]
    names = list(dict.fromkeys(name for each in found for name in each))
    rows = [[name, *(each.get(name, "-") for each in found)] for name in names]
    return markdown_table([network, *(f"{each['pairs']} pairs" for each in cells)], rows)


# --- characters ---------------------------------------------------------------------------------


def bits_table(summary: Mapping[str, Any]) -> str:
    """Lay out bits per character, beside the paper's."""
    table = [
        [
            CELLS.label(name),
            mean_std(each["bits"]["test"], 1, 4),
            bits_difference(summary, name),
            mean_std(each["bits"]["validation"], 1, 4),
            f"{BITS[name]:.3f}" if name in BITS else "-",
            str(each["features"]),
            f"{each['characters_per_second']:,.0f}",
            duration(each["seconds"] / len(summary["seeds"])),
        ]
        for name, each in summary["results"].items()
    ]
    header = ["model", "test", "less the LSTM", "validation", "the paper's test", "units"]
    return markdown_table([*header, "characters/s", "time a run"], table)


def bits_difference(summary: Mapping[str, Any], model: str) -> str:
    """Write how many bits more than the LSTM's a model needs, seed by seed.

    Those with layer norm are compared with the LSTM that has it.
    """
    plain = "ln_lstm" if model.startswith("ln_") else "lstm"
    results = summary["results"]
    if model == plain or plain not in results:
        return "-"
    ours, theirs = (results[each]["bits"]["test"]["seeds"] for each in (model, plain))
    return mean_std(statistic([a - b for a, b in zip(ours, theirs, strict=True)]), 1, 4, "+")


def parts_table(summary: Mapping[str, Any]) -> str:
    """Lay out of which parts a model's parameters are, and what a character costs."""
    results = summary["results"]
    parts = list(next(iter(results.values()))["parameters"])
    table = [
        [
            CELLS.label(name),
            *(f"{each['parameters'][part]:,}" for part in parts),
            f"{each['multiply_adds']:,}",
        ]
        for name, each in results.items()
    ]
    return markdown_table(["model", *parts, "multiply-adds"], table)


def hyper_table(summary: Mapping[str, Any], *keys: str, scale: int = 1, digits: int = 4) -> str:
    """Lay out figures of the models that have a hyper cell: a line a model.

    Args:
        summary: Contents of `summary.json`.
        *keys: That lead from "examined" to the figures by name.
        scale: By which to multiply.
        digits: After the point.
    """
    found = {}
    for name, each in summary["results"].items():
        if "examined" in each:
            figures = each["examined"]
            for key in keys:
                figures = figures[key]
            found[CELLS.label(name)] = figures
    names = list(next(iter(found.values())))
    rows = [
        [model, *(mean_std(figures[name], scale, digits) for name in names)]
        for model, figures in found.items()
    ]
    return markdown_table(["model", *names], rows)


_EXTREMES = 5  # characters
_VISIBLE = {" ": "space", "\n": "end of line", "\t": "tab", "|": "bar", "`": "backquote"}


def extremes_table(summary: Mapping[str, Any]) -> str:
    """Lay out at which characters weights change most, and least, of those with a hyper cell."""
    table = []
    for name, each in summary["results"].items():
        if "examined" in each:
            by_character = each["examined"]["movement"]["characters"]
            ranked = sorted(by_character, key=lambda c: -by_character[c]["mean"])
            shown = [f"`{_VISIBLE.get(c, c)}` {mean_std(by_character[c], 100, 1)}" for c in ranked]
            most, least = shown[:_EXTREMES], shown[: -_EXTREMES - 1 : -1]
            table.append([CELLS.label(name), ", ".join(most), ", ".join(least)])
    return markdown_table(["model", "most at", "least at"], table)


# --- runs ---------------------------------------------------------------------------------------


def run_table(results: Results, planned: Iterable[str]) -> str:
    """Lay out where and how long each study ran, also of those that are still to be run."""
    table = []
    for name in _in_order(results, planned):
        facts = ["not run", "-", "-", "-", "-"]
        if name in results.summaries:
            summary = results.summaries[name]
            facts = [summary["device"], summary["commit"] or "-", str(summary["jobs"])]
            facts += [str(len(summary["seeds"])), duration(seconds(summary))]
        table.append([f"`{name}`", *facts])
    header = ["study", "device", "commit", "runs at a time", "seeds", "training time, all runs"]
    return markdown_table(header, table)


def _in_order(results: Results, planned: Iterable[str]) -> list[str]:
    return list(dict.fromkeys([*planned, *results.summaries]))


def seconds(summary: Mapping[str, Any]) -> float:
    """Return the training time of all runs of a study."""
    if "study" in summary:
        return float(sum(each["seconds"] for each in summary["results"].values()))
    return float(sum(summary["seconds"].values()))


def cost(results: Results, *studies: str) -> str:
    """Write the training time of all runs of some studies that have been run."""
    return duration(sum(seconds(results.summaries[name]) for name in studies))


def commands(results: Results, planned: Iterable[str] = ()) -> str:
    """List the command of each study that has been run, as a shell script."""
    return "\n".join(
        f"# {name}\n{results.summaries[name]['command'].removesuffix(' --resume')}"
        for name in _in_order(results, planned)
        if name in results.summaries
    )


def facts(results: Results, studies: Sequence[str], key: str) -> str:
    """List the different values of a fact of some studies, such as "device"."""
    values = [results.summaries[name][key] for name in studies]
    return "; ".join(dict.fromkeys(_written(value) for value in values))


def _written(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {version}" for name, version in value.items())
    return str(value)


def shared_table(results: Results, key: str) -> str:
    """Lay out a fact of all studies that have it: a line a value, with its studies."""
    studies: dict[str, list[str]] = {}
    for name, summary in results.summaries.items():
        if key in summary:
            studies.setdefault(_written(summary[key]), []).append(f"`{name}`")
    return markdown_table(
        [key, "studies"], [[value, ", ".join(names)] for value, names in studies.items()]
    )


def once_table(results: Results) -> str:
    """Lay out what was run once, outside `reproduce.py`."""
    table = [
        [f"`{name}`", each["what"], ", ".join(f"`{line}`" for line in each["commands"]) or "-"]
        for name, each in results.once.items()
    ]
    return markdown_table(["figures", "what", "command"], table)
