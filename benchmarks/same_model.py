"""Check that PyTorch's version and the library's are the same model: `--help`."""

import json
import sys
from typing import Any

import jax
import numpy as np
import torch
import torch_straw
from article import CLASSES, parameters
from jax_models import make_batch

from straw_experiments.data import normalise
from straw_experiments.image_classification.networks import article_straw
from straw_experiments.runner.readers import whole
from straw_experiments.runner.settings import Parser
from straw_jax.straw import Base


def check(batch: int, rank: int, base: Base) -> dict[str, Any]:
    """Return the number of parameters, and how far both versions' logits differ.

    Raises:
        RuntimeError: if the two versions are not the same model.
    """
    images = normalise(make_batch(batch)[0])
    straw = article_straw(classes=CLASSES, rank=rank, base=base)
    params = jax.jit(straw.init)(jax.random.key(0))
    if base == "trained":  # it would start with updates of zero
        modulator = article_straw(classes=CLASSES, rank=rank, base="none")
        params |= jax.jit(modulator.init)(jax.random.key(1))
    model = torch_straw.Straw(CLASSES, rank, base).eval()
    torch_straw.load_params(model, params)
    ours = np.asarray(jax.jit(straw.apply)(params, images))
    with torch.no_grad():
        theirs = model(torch_straw.as_input(images)).numpy()
    difference = float(np.abs(ours - theirs).max() / np.abs(ours).max())
    if not difference < 1e-4:
        raise RuntimeError(f"the two versions' logits differ by {difference:.1e} of the largest")
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    torch_count = sum(parameter.numel() for parameter in torch_straw.trained(model))
    if not count == torch_count == parameters(rank, base):
        raise RuntimeError(
            f"expected {parameters(rank, base):,} parameters in both versions, "
            f"got {count:,} and {torch_count:,}"
        )
    return {"parameters": count, "logits_relative_difference": difference}


def main() -> None:
    parser = Parser("same_model.py", __doc__)
    parser.add_argument("--batch", type=whole(1, 10**4), default=8, help="images (%(default)s)")
    parser.add_argument(
        "--rank", type=whole(1, 10**4), default=16, help="of the updates (%(default)s)"
    )
    parser.add_argument("--base", choices=("none", "trained"), default="none")
    try:
        print(json.dumps(check(**vars(parser.parse_args()))))
    except RuntimeError as error:
        sys.exit(f"same_model.py: {error}")


if __name__ == "__main__":
    main()
