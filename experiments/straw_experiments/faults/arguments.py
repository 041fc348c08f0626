"""Bad arguments of the library: each call must be refused in one sentence of its own.

`cases` names calls with one bad argument each; `answer` makes one and says what is wrong with the
answer. Nothing is compiled: a bad argument must show in its type, shape or dtype.
"""

import functools
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

import straw_jax
from straw_jax import (
    CNN,
    CompactCNN,
    ConvEncoder,
    Factors,
    FactorSpec,
    Geometric,
    Heads,
    Network,
    NormEncoder,
    Posed,
    PoseEncoder,
    PoseEstimate,
    PoseRange,
    RecursiveEncoder,
    SetEncoder,
    Straw,
    ViT,
    affine,
    analysis,
    factor_spec,
    hyperlora,
    hyperlora_conv,
    invert,
    linen,
    make_geometric,
    make_straw,
    materialize,
    modulate,
    predictor,
    resample,
)
from straw_jax.encoders import rotary
from straw_jax.geometry import compose, composed
from straw_jax.hypernetwork import make_hypernetwork
from straw_jax.models import Conv7, WideResNet
from straw_jax.pose import ANGLES, angles_of, likeliest
from straw_jax.recurrent import HyperLSTMCell, LowRankLSTMCell, LSTMCell
from straw_jax.sharding import make_mesh

Call = Callable[[], Any]

IMAGES = np.zeros((3, 8, 8, 1), np.float32)
POINTS = np.zeros((3, 5), np.float32)
KEY = jax.random.key(0)
TREE = {"W": np.zeros((6, 5), np.float32), "bias": np.zeros(5, np.float32)}
B: Any = np.zeros((3, 6, 2), np.float32)
A: Any = np.zeros((3, 2, 5), np.float32)
UPDATES: Any = {
    "W": Factors(B, A),
    "bias": np.zeros((3, 5), np.float32),
}
KERNEL = np.zeros((3, 3, 1, 4), np.float32)
EXECUTOR = CompactCNN(4, stages=((8,),))


def cases() -> dict[str, Call]:
    """Return calls with one bad argument each, by name."""
    groups = (
        _factors,
        _making,
        _straws,
        _lifting,
        _layers,
        _geometry,
        _poses,
        _hypernetworks,
        _modules,
        _analysis,
        _prediction,
    )
    return {
        f"{group.__name__[1:]}: {name}": call for group in groups for name, call in group().items()
    }


def answer(call: Call) -> str:
    """Make a call, and return what is wrong with the answer.

    Args:
        call: with a bad argument.

    Returns:
        Nothing where it is a `ValueError` of the library, of one line that names where it is from;
        else what came.
    """
    try:
        call()
    except Exception as error:  # whatever is raised is the answer
        text = str(error)
        came = f"{type(error).__name__}: {' '.join(text.split())}"
        source = Path(traceback.extract_tb(error.__traceback__)[-1].filename)
        own = source.is_relative_to(Path(straw_jax.__file__).parent)
        line = ": " in text and "\n" not in text and text.endswith((".", "?"))
        if type(error) is ValueError and own and line:
            return ""
        return f"{came} ({source.name})"
    return "accepted"


def _zeros(of: Callable[..., Any]) -> Any:
    """Return parameters of zeros, without compiling their initialisation."""
    shapes = jax.eval_shape(of, KEY)
    return jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)


@functools.cache
def _spec() -> FactorSpec:
    return factor_spec(TREE, 2)


@functools.cache
def _straw(rank: int = 2, base: Any = "trained") -> Straw:
    options: Any = {"encoder": ConvEncoder(4), "hidden": 4, "base": base}
    return make_straw(EXECUTOR, IMAGES, rank=rank, **options)


@functools.cache
def _params(rank: int = 2, base: Any = "trained") -> Any:
    return _zeros(_straw(rank, base).init)


@functools.cache
def _geometric() -> Geometric:
    return make_geometric(
        EXECUTOR, IMAGES, kernel="conv1/kernel", encoder=PoseEncoder(features=(8,))
    )


@functools.cache
def _hypernetwork(chunk: tuple[int, int] = (8, 8)) -> Network:
    return make_hypernetwork(Conv7(), IMAGES, ["conv2/kernel"], chunk=chunk)


class _Trained(nn.Module):
    """A model that must be told whether it is trained."""

    @nn.compact
    def __call__(self, x: Any, *, train: bool) -> Any:
        return nn.Dense(4)(nn.Dropout(0.5, deterministic=not train)(x))


class _Normalised(nn.Module):
    """A model with state."""

    @nn.compact
    def __call__(self, x: Any) -> Any:
        return nn.BatchNorm(use_running_average=True)(x)


def _factors() -> dict[str, Call]:
    def spec(ranks: Any, params: Any = TREE, axes: Any = None) -> Call:
        return lambda: factor_spec(params, ranks, axes=axes)

    def pack(**changed: Any) -> Call:
        return lambda: _spec().pack(UPDATES | changed)

    return {
        "rank 0": spec(0),
        "rank True": spec(True),
        "rank 1.5": spec(1.5),
        "rank '4'": spec("4"),
        "rank None": spec(None),
        "rank [0]": spec({"W": [0]}),
        "no kind": spec({"W": []}),
        "a rank of a bias": spec({"bias": 1}),
        "a pose of a dense layer": spec({"W": "pose"}),
        "an unknown pattern": spec({"*/weight": 2}),
        "a pattern that is a number": spec({0: 2}),
        "no pattern": spec({}),
        "columns before rows": spec(2, axes={"W": "cr"}),
        "axes for no leaf": spec(2, axes={"V": "rc"}),
        "axes without a path": spec(2, axes="rc"),
        "numbers for arrays": spec(2, {"W": 1.0}),
        "unpack too few numbers": lambda: _spec().unpack(jnp.zeros(3)),
        "unpack a list": lambda: _spec().unpack([0.0] * _spec().size),  # type: ignore[arg-type]
        "pack a list": lambda: _spec().pack([B, A]),  # type: ignore[arg-type]
        "pack lists": pack(W=Factors(B.tolist(), A.tolist())),
        "pack another rank": pack(W=Factors(B[..., :1], A[:, :1])),
        "pack without a leaf": lambda: _spec().pack({"W": UPDATES["W"]}),
        "pack one shared leaf": pack(bias=np.zeros(5, np.float32)),
    }


def _making() -> dict[str, Call]:
    def make(executor: Any = EXECUTOR, sample: Any = IMAGES, **options: Any) -> Call:
        defaults: Any = {"rank": 2, "hidden": 4, "base": "trained", "encoder": ConvEncoder(4)}
        return lambda: make_straw(executor, sample, **(defaults | options))

    def network(function: Callable[[Any], Any]) -> Network:
        return Network(lambda key, x: {}, lambda params, x: function(x))

    return {
        "unknown base": make(base="thawed"),
        "a module's class": make(CompactCNN),
        "a function": make(lambda params, x: x),
        "a sample of lists": make(sample=IMAGES.tolist()),
        "a number": make(sample=1.0),
        "no sample": make(sample=None),
        "one image": make(sample=IMAGES[0]),
        "no images": make(sample=IMAGES[:0]),
        "images without pixels": make(sample=IMAGES[:, :0]),
        "an image without channels": make(sample=IMAGES[..., 0]),
        "texts": make(sample=np.array(["a", "b"])),
        "a context of lists": make(context=POINTS.tolist(), encoder=nn.Dense(4)),
        "contexts of two batch sizes": make(context=(POINTS, POINTS[:1]), encoder=nn.Dense(4)),
        "no contexts": make(context=POINTS[:0], encoder=nn.Dense(4)),
        "an encoder to vectors of every pixel": make(encoder=nn.Dense(4)),
        "an encoder to one vector": make(encoder=network(lambda x: x.mean(axis=0))),
        "an encoder to one number": make(encoder=network(lambda x: x.mean(axis=(1, 2, 3)))),
        "an encoder to poses": make(encoder=PoseEncoder(features=(8,))),
        "hidden 0": make(hidden=0),
        "hidden 2.5": make(hidden=2.5),
        "rank 0": make(rank=0),
        "rank None": make(rank=None),
        "an unknown pattern": make(rank={"conv9/kernel": 2}),
        "leaves without a rank": make(rank={"*/kernel": 2}, base="none"),
        "scale '2'": make(scale="2"),
        "scale nan": make(scale=float("nan")),
        "an array as scale": make(scale=np.ones(3)),
        "an argument that is missing": make(_Trained(), POINTS, encoder=nn.Dense(4)),
        "an argument that is unknown": lambda: linen(nn.Dense(4), train=False),
        "state": make(_Normalised(), POINTS, encoder=nn.Dense(4)),
    }


def _straws() -> dict[str, Call]:
    def apply(params: Any = None, x: Any = IMAGES, **options: Any) -> Call:
        return lambda: _straw().apply(_params() if params is None else params(), x, **options)

    def styles(vectors: Any) -> Call:
        return lambda: _straw().apply_styles(_params(), vectors, IMAGES)

    vectors = np.zeros((3, 4), np.float32)
    described = jax.ShapeDtypeStruct(IMAGES.shape, IMAGES.dtype)
    return {
        "a number as key": lambda: _straw().init(0),  # type: ignore[arg-type]
        "a legacy key": lambda: _straw().init(jax.random.PRNGKey(0)),
        "several keys": lambda: _straw().init(jax.random.split(KEY)),
        "no key": lambda: _straw().init(None),  # type: ignore[arg-type]
        "wrapped parameters": apply(lambda: {"params": _params()}),
        "a list of parameters": apply(lambda: [_params()]),
        "no parameters": apply(dict),
        "parameters without an executor": apply(
            lambda: {name: _params()[name] for name in ("encoder", "generator")}
        ),
        "a wrapped executor": apply(
            lambda: _params() | {"executor": {"params": _params()["executor"]}}
        ),
        "a wrapped encoder": apply(
            lambda: _params() | {"encoder": {"params": _params()["encoder"]}}
        ),
        "parameters of another rank": apply(lambda: _params(3)),
        "larger images": apply(x=np.zeros((3, 12, 12, 1), np.float32)),
        "images of three channels": apply(x=np.zeros((3, 8, 8, 3), np.float32)),
        "images without pixels": apply(x=IMAGES[:, :0]),
        "one image": apply(x=IMAGES[0]),
        "images of lists": apply(x=IMAGES.tolist()),
        "a list of images": apply(x=list(IMAGES)),
        "a number": apply(x=1.0),
        "nothing": apply(x=None),
        "shapes": apply(x=described),
        "texts": apply(x=np.full((3, 8, 8, 1), "a")),
        "objects": apply(x=IMAGES.astype(object)),
        "contexts of other samples": apply(context=IMAGES[:2]),
        "one context without its axis": apply(context=IMAGES[0]),
        "a context of lists": apply(context=IMAGES.tolist()),
        "styles of other samples": styles(vectors[:2]),
        "styles of lists": styles(vectors.tolist()),
        "a style without its axis": styles(vectors[0]),
        "longer styles": styles(np.zeros((3, 5), np.float32)),
        "styles of one image": lambda: _straw().styles(_params(), IMAGES[0]),
        "factors of one image": lambda: _straw().factors(_params(), IMAGES[0]),
        "factors of wrapped parameters": lambda: _straw().factors({"params": _params()}, IMAGES),
        "merge a batch": lambda: _straw().merge(_params(), IMAGES),
        "merge lists": lambda: _straw().merge(_params(), IMAGES[0].tolist()),
        "merge wrapped parameters": lambda: _straw().merge({"params": _params()}, IMAGES[0]),
        "frozen, without an executor": lambda: _straw(2, "frozen").apply(
            _params(2, "frozen"), IMAGES
        ),
    }


def _lifting() -> dict[str, Call]:
    def lifted(factors: Any, params: Any = TREE) -> Call:
        layer = modulate(lambda params, x: x @ params["W"] + params["bias"])
        return lambda: layer(params, factors, np.zeros((3, 6), np.float32))

    shapes = jax.eval_shape(lambda: TREE)
    return {
        "factors of an unknown leaf": lifted(UPDATES | {"V": B}),
        "factors of another layer": lifted({"W": Factors(B[:, :3], A)}),
        "a bias of another layer": lifted({"bias": B}),
        "neither weights nor factors": lifted({"W": UPDATES["W"]}, shapes),
        "a list of factors": lifted([B, A]),
        "factors of lists": lifted({"W": Factors(B.tolist(), A.tolist())}),
        "no function": lambda: modulate(None),  # type: ignore[arg-type]
        "materialize a batch": lambda: materialize(TREE, UPDATES),
        "materialize lists": lambda: materialize(TREE, {"bias": [0.0]}),  # type: ignore[dict-item]
        "materialize an unknown leaf": lambda: materialize(TREE, {"V": B[0]}),
    }


def _layers() -> dict[str, Call]:
    x = np.zeros((3, 6), np.float32)
    of_conv = np.zeros((3, 9, 2), np.float32), np.zeros((3, 2, 4), np.float32)

    def dense(**changed: Any) -> Call:
        return lambda: hyperlora(**({"x": x, "B": B, "A": A} | changed))

    def conv(**changed: Any) -> Call:
        arguments: Any = {"x": IMAGES, "B": of_conv[0], "A": of_conv[1], "kernel": KERNEL}
        return lambda: hyperlora_conv(**(arguments | changed))

    return {
        "x of lists": dense(x=x.tolist()),
        "x a number": dense(x=1.0),
        "x of texts": dense(x=np.array(["a"])),
        "no B": dense(B=None),
        "B of four axes": dense(B=B[None]),
        "B for another layer": dense(B=B[:, :3]),
        "A of another rank": dense(A=A[:, :1]),
        "A and B exchanged": dense(A=B, B=A),
        "factors of other samples": dense(B=B[:2]),
        "a kernel of another layer": dense(kernel=np.zeros((6, 4), np.float32)),
        "a bias of another layer": dense(bias=np.zeros(6, np.float32)),
        "neither kernel nor window": conv(kernel=None),
        "window 0": conv(kernel=None, window=(0, 3)),
        "window of fractions": conv(kernel=None, window=(1.5, 2)),
        "window 3": conv(kernel=None, window=3),
        "strides 0": conv(strides=0),
        "three strides": conv(strides=(1, 1, 1)),
        "strides of fractions": conv(strides=1.5),
        "dilation 0": conv(dilation=(1, 0)),
        "unknown padding": conv(padding="FULL"),
        "padding of three numbers": conv(padding=((0, 0, 0), 1)),
        "padding of fractions": conv(padding=0.5),
        "one image": conv(x=IMAGES[0]),
        "a kernel of three channels": conv(kernel=np.zeros((3, 3, 3, 4), np.float32)),
        "images smaller than the window": conv(x=IMAGES[:, :2], padding="VALID"),
    }


def _geometry() -> dict[str, Call]:
    matrix = np.zeros((2, 3), np.float32)
    image = IMAGES[0]

    def bad(function: Callable[..., Any], *arguments: Any, **options: Any) -> Call:
        return lambda: function(*arguments, **options)

    return {
        "angles and scales of other samples": bad(affine, np.zeros(3), np.ones(2)),
        "invert a square matrix": bad(invert, np.zeros((3, 3))),
        "invert lists": bad(invert, matrix.tolist()),
        "compose with an angle": bad(compose, matrix, 90.0),
        "resample integers": bad(resample, image.astype(np.uint8), matrix),
        "resample lists": bad(resample, image.tolist(), matrix),
        "resample by several matrices": bad(resample, image, matrix[None]),
        "resample a matrix": bad(resample, image[..., 0], matrix),
        "a kernel for another grid": bad(composed, np.zeros((5, 2)), matrix, (2, 2)),
        "an empty grid": bad(composed, np.zeros((4, 2)), matrix, (0, 2)),
        "a grid of three": bad(Posed, matrix, grid=(2, 2, 1)),
        "a grid of fractions": bad(Posed, matrix, grid=(2.0, 2.0)),
        "a number as grid": bad(Posed, matrix, grid=4),
    }


def _poses() -> dict[str, Call]:
    def make(sample: Any = IMAGES, kernel: Any = "conv1/kernel", **options: Any) -> Call:
        return lambda: make_geometric(EXECUTOR, sample, kernel=kernel, **options)

    @functools.cache
    def params() -> Any:
        return _zeros(_geometric().straw.init)

    def loss(images: Any = IMAGES, key: Any = KEY, wrapped: bool = False) -> Call:
        return lambda: _geometric().pose_loss(
            {"params": params()} if wrapped else params(), images, key
        )

    def straw(name: str, *arguments: Any) -> Call:
        return lambda: getattr(_geometric().straw, name)(params(), *arguments)

    estimate = PoseEstimate(jnp.zeros((3, 7)), None, None)
    return {
        "no hypotheses": make(hypotheses=0),
        "hypotheses of a fraction": make(hypotheses=2.5),
        "an unknown kernel": make(kernel="conv9/kernel"),
        "a list of kernels": make(kernel=["conv1/kernel"]),
        "the kernel of a dense layer": make(kernel="fc/kernel"),
        "one image": make(IMAGES[0]),
        "no images": make(IMAGES[:0]),
        "an angle as range": make(poses=60.0),
        "a range of texts": make(poses=PoseRange("60")),  # type: ignore[arg-type]
        "a range too large": make(poses=PoseRange(200.0)),
        "an encoder for another range": make(encoder=PoseEncoder(PoseRange(20.0), features=(8,))),
        "images too small for the encoder": make(IMAGES[:, :4, :4]),
        "the loss of wrapped parameters": loss(wrapped=True),
        "the loss of one image": loss(IMAGES[0]),
        "the loss of integers": loss(IMAGES.astype(np.uint8)),
        "the loss with a number as key": loss(key=0),
        "training on one image": lambda: _geometric().apply_detached(params(), IMAGES[0]),
        "apply to one image": straw("apply", IMAGES[0]),
        "styles of another length": straw("apply_styles", np.zeros((3, 4), np.float32), IMAGES),
        "merge": straw("merge", IMAGES[0]),
        "init with a number": lambda: _geometric().straw.init(0),  # type: ignore[arg-type]
        "draw with a number": lambda: ANGLES.draw(0, 4),  # type: ignore[arg-type]
        "another encoder's angles": lambda: likeliest(estimate, angles_of(ANGLES), 3),
    }


def _hypernetworks() -> dict[str, Call]:
    def make(kernels: Any = ("conv2/kernel",), chunk: Any = (8, 8), **options: Any) -> Call:
        return lambda: make_hypernetwork(Conv7(), IMAGES, kernels, chunk=chunk, **options)

    def apply(params: Callable[[], Any], x: Any = IMAGES) -> Call:
        return lambda: _hypernetwork().apply(params(), x)

    @functools.cache
    def params(chunk: tuple[int, int] = (8, 8)) -> Any:
        return _zeros(_hypernetwork(chunk).init)

    return {
        "a text of kernels": make("conv2/kernel"),
        "nested kernels": make([["conv2/kernel"]]),
        "an unknown kernel": make(["conv9/kernel"]),
        "chunk 0": make(chunk=(0, 8)),
        "chunk of three": make(chunk=(8, 8, 8)),
        "a chunk that does not divide": make(chunk=(5, 8)),
        "embedding 0": make(embedding=0),
        "hidden 0": make(hidden=0),
        "a number as key": lambda: _hypernetwork().init(0),
        "wrapped parameters": apply(lambda: {"params": params()}),
        "parameters of another chunk": apply(lambda: params((4, 8))),
        "one image": apply(params, IMAGES[0]),
    }


def _modules() -> dict[str, Call]:
    def run(module: nn.Module, *inputs: Any) -> Call:
        return lambda: jax.eval_shape(lambda: module.init(KEY, *inputs))

    sets = np.zeros((2, 5, 3), np.float32)
    x, carry = np.zeros((2, 3), np.float32), (np.zeros((2, 4), np.float32),) * 2
    return {
        "ConvEncoder, one image": run(ConvEncoder(), IMAGES[0]),
        "ConvEncoder, style 0": run(ConvEncoder(style=0), IMAGES),
        "NormEncoder, 12 features": run(NormEncoder(features=(12,)), IMAGES),
        "NormEncoder, features 8": run(NormEncoder(features=8), IMAGES),  # type: ignore[arg-type]
        "RecursiveEncoder, heads 0": run(RecursiveEncoder(heads=0), IMAGES),
        "RecursiveEncoder, an odd width": run(RecursiveEncoder(width=6, heads=2), IMAGES),
        "RecursiveEncoder, steps 0": run(RecursiveEncoder(steps=0), IMAGES),
        "SetEncoder, vectors": run(SetEncoder(), x),
        "SetEncoder, empty sets": run(SetEncoder(), sets[:, :0]),
        "SetEncoder, a mask of another size": run(SetEncoder(), (sets, np.ones((2, 4), bool))),
        "SetEncoder, a mask of numbers": run(SetEncoder(), (sets, np.ones((2, 5)))),
        "SetEncoder, unknown pooling": run(SetEncoder(pooling="max"), sets),  # type: ignore[arg-type]
        "SetEncoder, no layers": run(SetEncoder(element=()), sets),
        "PoseEncoder, small images": run(PoseEncoder(), IMAGES[:, :4]),
        "PoseEncoder, 12 features": run(PoseEncoder(features=(12,)), IMAGES),
        "Generator, hidden 0": run(Heads(_spec(), hidden=0), x),
        "Generator, no style": run(Heads(_spec()), x[:, :0]),
        "CNN, small images": run(CNN(), IMAGES[:, :4]),
        "CompactCNN, one image": run(EXECUTOR, IMAGES[0]),
        "ViT, a width of no heads": run(ViT(width=6, heads=4), IMAGES),
        "WideResNet, depth 5": run(WideResNet(depth=5), IMAGES),
        "LSTMCell, features 0": run(LSTMCell(0), carry, x),
        "LSTMCell, dropout 1.5": run(LSTMCell(4, dropout=1.5), carry, x),
        "LSTMCell, another carry": run(LSTMCell(5), carry, x),
        "LSTMCell, lists": run(LSTMCell(4), carry, x.tolist()),
        "HyperLSTMCell, embedding 0": run(HyperLSTMCell(4, embedding=0), carry, x),
        "HyperLSTMCell, an LSTM's carry": run(HyperLSTMCell(4), carry, x),
        "LowRankLSTMCell, rank 0": run(LowRankLSTMCell(4, rank=0), (carry, carry), x),
        "rotary, an odd size": lambda: rotary(jnp.zeros((2, 5, 4, 3))),
    }


def _analysis() -> dict[str, Call]:
    def norms(updates: Any) -> Call:
        return lambda: analysis.squared_norms(updates)

    def posed() -> Iterator[Any]:
        yield {"W": Posed(jnp.zeros((3, 2, 3)))}

    other = {"W": UPDATES["W"]}
    return {
        "an array": norms(B),
        "one sample": norms({"W": Factors(B[0], A[0])}),
        "integers": norms({"bias": np.zeros((3, 5), int)}),
        "lists": norms({"bias": [[0.0]]}),
        "texts": norms({"bias": np.array(["a"])}),
        "a pose": lambda: analysis.variance(posed()),
        "other leaves": lambda: analysis.inner_products(UPDATES, other),
        "other samples": lambda: analysis.inner_products({"W": Factors(B[:2], A[:2])}, other),
        "another rank": lambda: analysis.differences({"W": Factors(B[..., :1], A[:, :1])}, other),
        "no groups": lambda: analysis.variance([]),
        "an empty group": lambda: analysis.variance([{"W": Factors(B[:0], A[:0])}]),
        "groups of other leaves": lambda: analysis.variance([UPDATES, other]),
        "groups by name": lambda: analysis.variance({"a": UPDATES}),  # type: ignore[dict-item]
        "layers of another specification": lambda: analysis.by_layer(_spec(), other),
    }


def _prediction() -> dict[str, Call]:
    def predict(x: Any, apply: Any = lambda params, x, **options: x, **options: Any) -> Call:
        return lambda: predictor(apply, TREE)(x, **options)

    def make(apply: Any = jnp.matmul, params: Any = TREE, **options: Any) -> Call:
        return lambda: predictor(apply, params, **options)

    return {
        "no batch sizes": make(batch_sizes=()),
        "batch size 0": make(batch_sizes=(0, 8)),
        "batch sizes of fractions": make(batch_sizes=(1.5,)),
        "one batch size": make(batch_sizes=8),
        "a text of batch sizes": make(batch_sizes="8"),
        "no function": make("apply"),
        "parameters that are texts": make(params={"W": "a"}),
        "lists": predict(POINTS.tolist()),
        "nothing": predict(None),
        "a number": predict(1.0),
        "texts": predict(np.array(["a", "b"])),
        "contexts of other samples": predict(POINTS, context=POINTS[:2]),
        "a model without a batch axis": predict(POINTS, lambda params, x: x.sum()),
        "a mesh of no devices": lambda: make_mesh(model=0),
        "a mesh of fractions": lambda: make_mesh(data=0.5),  # type: ignore[arg-type]
    }
