"""Summaries of experiments that never ran, for tests of what is made from them."""

import statistics

import numpy as np

MODELS = ("standalone", "straw", "resnet34")
VARIANTS = ("standard", "rotated", "blurred")
CONTROLS = ("own", "same class", "shuffled", "mean", "zero")
PARAMETERS = {
    "standalone": 1_204_655,
    "wide_dense": 20_605_678,
    "wide_compute": 1_939_214,
    "wide": 20_607_351,
    "straw": 20_606_863,
    "resnet34": 21_299_951,
}
UNOFFICIAL = "EMNIST (unofficial archive, sha256 8ef1351a4efc)"
ARTICLE = {
    "fraction": 0.1,
    "limit": None,
    "validation": None,
    "rank": 16,
    "base": "none",
    "epochs": 5,
    "batch_size": 128,
    "learning_rate": 1e-4,
    "schedule": "constant",
}
CLASSES = tuple("0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabdefghnqrt")


def statistic(values):
    std = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.mean(values), "std": std, "seeds": list(values)}


def _by_variant(accuracy, loss):
    return {v: {"accuracy": statistic(accuracy[v]), "loss": statistic(loss[v])} for v in VARIANTS}


def summary_of(accuracy, loss, **changes):
    """A summary of `accuracy[model][variant]` and `loss[...]`, lists with a value for each seed."""
    models = list(accuracy)
    seeds = len(accuracy[models[0]][VARIANTS[0]])
    return {
        "dataset": UNOFFICIAL,
        "experiment": "10pct_rank16",
        "device": "cpu (2 cores)",
        "jobs": 2,
        "commit": "0123456789",
        "command": "python experiments/run.py --experiment 10pct_rank16",
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "config": ARTICLE,
        "seeds": list(range(seeds)),
        "seconds": dict.fromkeys(models, 94.2 * seeds),
        "parameters": {model: PARAMETERS[model] for model in models},
        "multiply_adds": {model: 20 * PARAMETERS[model] for model in models},
        "results": {model: _by_variant(accuracy[model], loss[model]) for model in models},
        "control_images": 4_700,
        "controls": {
            model: {
                # Other figures than the model's own, and than each other.
                control: _by_variant(
                    {v: [a / (2 + i) for a in accuracy[model][v]] for v in VARIANTS}, loss[model]
                )
                for i, control in enumerate(CONTROLS)
            }
            for model in models
            if model == "straw"
        },
        **changes,
    }


def example(models=MODELS, seeds=3, **changes):
    generator = np.random.default_rng([len(models), seeds])

    def draw(low, high):
        return {
            m: {v: generator.uniform(low, high, seeds).tolist() for v in VARIANTS} for m in models
        }

    return summary_of(draw(0.2, 0.9), draw(0.3, 4.0), **changes)


def cells(line):
    """Cells of a line of a Markdown table."""
    return [cell.strip() for cell in line.strip("|").split("|")]


def shows(text, expected, scale, digits):
    """Whether a printed mean, and spread if there is one, is what the summary holds."""
    numbers = [float(number) for number in text.split(" ± ")]
    exact = [expected["mean"]] + ([] if expected["std"] is None else [expected["std"]])
    return len(numbers) == len(exact) and np.allclose(
        numbers, np.multiply(exact, scale), rtol=0, atol=0.51 * 10**-digits
    )


def example_analysis():
    """What analysis.json would hold of two leaves, two angles and one blur."""

    def figure(mean):
        return {"mean": mean, "std": None, "seeds": [mean]}

    def row(layer, size):
        form = {"parameters": size, "multiply_adds": 3 * size, "bytes": 4 * size}
        forms = {"whole": form, "factors": {**form, "bytes": size}, "static": {**form, "bytes": 0}}
        return {"layer": layer, "dense_numbers": size, "generated_numbers": size // 2, **forms}

    norm = {"mean": figure(1.234), "p5": figure(0.9), "p95": figure(1.5)}
    classes = {"share": figure(0.731), "chance": figure(0.02), "corrected": figure(0.725)}
    update = {"norm": norm, "variation": figure(0.456), "between_classes": classes}
    moved = {
        "rotation": [figure(0.0), figure(0.81)],
        "blur": [figure(0.17)],
        "same class": figure(0.62),
        "another image": figure(1.41),
    }
    return {
        "base": "none",
        "reference": "mean update",
        "images": {"updates": 940, "accuracy": 1880},
        "largest_standard_error": 0.0115,
        "angles": [0, 30],
        "sigmas": [1.0],
        "straw": {
            "straw": {
                "costs": [row("fc1", 1_179_648), row("total", 1_200_000)],
                "leaves": {
                    "fc1/bias": {"shape": [128], "rank": "whole", "largest": None},
                    "fc1/kernel": {"shape": [9216, 128], "rank": 16, "largest": 16},
                },
                "updates": {"fc1/bias": update, "fc1/kernel": {**update, "effective_rank": norm}},
                "movement": {"fc1/kernel": moved},
            }
        },
        "turned": {
            "standalone": {"own": [figure(0.665), figure(0.301)]},
            "straw": {
                "own": [{**figure(0.725), "std": 0.011}, figure(0.35)],
                "upright style": [figure(0.725), figure(0.5)],
            },
        },
    }
