"""What is read as a context, and what is asked for without it: documents, and needles."""

from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np

from straw_experiments.documents.texts import Corpus
from straw_experiments.smollm.tokenizer import Tokenizer

SHARED = 2**32
"""Seed of what all runs of a study share, such as the tests: seeds of runs are below."""


class Batch(NamedTuple):
    """Contexts, and what is asked of each.

    Attributes:
        context: Tokens `[n, length]`.
        mask: Where there are tokens of it, bool `[n, length]`; they lie at the start.
        query: Tokens `[n * queries, time]`, the queries of each context one after the other.
        asked: Which tokens of the query count, bool `[n * queries, time]`; never the first.
    """

    context: Any
    mask: Any
    query: Any
    asked: Any

    @property
    def ids(self) -> np.ndarray:
        """The number of each query's context, `[n * queries]`."""
        return np.repeat(np.arange(len(self.context)), len(self.query) // len(self.context))


class Task(Protocol):
    """Draws batches.

    Attributes:
        length: The most tokens of a context in training.
    """

    length: int

    def draw(
        self, rng: np.random.Generator, n: int, part: str, *, length: int | None = None
    ) -> Batch:
        """Draw contexts of one part of the data, with queries.

        Args:
            rng: Draws.
            n: How many contexts.
            part: "train", "validation" or "test".
            length: Of each context; if omitted, of training, up to `self.length`.
        """


class Documents:
    """The tokens before a passage are the context, the passage is read without them."""

    def __init__(self, corpus: Corpus, length: int, passage: int):
        """Cut passages of so many tokens, behind contexts of at most `length` tokens.

        Raises:
            ValueError: No document of a part is long enough.
        """
        self.length, self.passage = length, passage
        self._corpus = corpus
        for part in corpus.documents:
            self._long(part, length)

    def _long(self, part: str, length: int) -> Sequence[np.ndarray]:
        least = length + self.passage
        found = [tokens for tokens in self._corpus.documents[part] if len(tokens) >= least]
        if not found:
            raise ValueError(
                f"argument --length: expected {part} documents of at least {least} tokens, context"
                " and passage, got none. Give less, or longer texts"
            )
        return found

    def draw(
        self, rng: np.random.Generator, n: int, part: str, *, length: int | None = None
    ) -> Batch:
        """Draw documents and places in them: the passage lies wherever there is room before it."""
        most = self.length if length is None else length
        documents = self._long(part, most)
        context = np.zeros((n, most), np.int32)
        mask = np.zeros((n, most), bool)
        query = np.zeros((n, self.passage), np.int32)
        for i in range(n):
            tokens = documents[int(rng.integers(len(documents)))]
            start = rng.integers(most, len(tokens) - self.passage + 1)
            own = most if length is not None else _shorter(rng, most)
            context[i, :own] = tokens[start - own : start]
            mask[i, :own] = True
            query[i] = tokens[start : start + self.passage]
        asked = np.ones(query.shape, bool)
        asked[:, 0] = False
        return Batch(context, mask, query, asked)


_DIGITS = 4
# fmt: off
_QUALITIES = (
    "red", "blue", "green", "yellow", "black", "white", "brown", "grey", "purple", "orange", "pink",
    "golden", "silver", "dark", "pale", "small", "large", "old", "new", "wooden",
)
_THINGS = (
    "door", "box", "bag", "chair", "table", "window", "house", "car", "boat", "key", "cup", "book",
    "lamp", "coat", "tree", "garden", "bridge", "tower", "shop", "ship", "wagon", "garage", "safe",
    "drawer", "gate",
)
# fmt: on


class Needles:
    """Made-up facts in other texts, as "The code of the blue door is 4183", and questions.

    Pairs such as "blue door" that are asked for in tests are in no training.
    """

    def __init__(self, corpus: Corpus, tokenizer: Tokenizer, length: int, facts: int, queries: int):
        """Hide `facts` in contexts of at most `length` tokens, and ask for `queries` of them.

        Raises:
            ValueError: There is no room for them.
        """
        self.length, self.facts, self.queries = length, facts, queries
        self._encode = tokenizer.encode
        self._filler = {part: np.concatenate(each) for part, each in corpus.documents.items()}
        self._time = max(len(self._fact(q, t, "0" * _DIGITS)) for q, t in _pairs("train"))
        if (needs := self.least(facts)) > length:
            raise ValueError(
                f"argument --length: {facts} facts need {needs} tokens, got {length}; give more, or"
                " fewer --facts"
            )
        if (shortest := min(map(len, self._filler.values()))) < length:
            raise ValueError(
                f"argument --length: expected texts of at least {length} tokens in each part to"
                f" hide facts in, got {shortest}; give more texts, or less"
            )

    def least(self, facts: int) -> int:
        """Return how many tokens so many facts need at most."""
        return facts * self._time

    def draw(
        self,
        rng: np.random.Generator,
        n: int,
        part: str,
        *,
        length: int | None = None,
        facts: int | None = None,
    ) -> Batch:
        """Draw facts, texts around them, and questions; `length` is that of facts and texts."""
        most = self.length if length is None else length
        facts = self.facts if facts is None else facts
        queries = min(self.queries, facts)
        pairs = _pairs("train" if part == "train" else "test")
        context = np.zeros((n, most), np.int32)
        mask = np.zeros((n, most), bool)
        query = np.zeros((n * queries, self._time), np.int32)
        asked = np.zeros(query.shape, bool)
        for i in range(n):
            chosen = [pairs[each] for each in rng.choice(len(pairs), facts, replace=False)]
            codes = ["".join(map(str, rng.integers(0, 10, _DIGITS))) for _ in chosen]
            sentences = [
                self._fact(quality, thing, code)
                for (quality, thing), code in zip(chosen, codes, strict=True)
            ]
            least = sum(map(len, sentences))
            own = most if length is not None else _shorter(rng, most, least)
            tokens = self._hidden(rng, sentences, own, part)
            context[i, :own] = tokens
            mask[i, :own] = True
            for j, each in enumerate(rng.permutation(facts)[:queries]):
                row = sentences[each][:-1]  # without the full stop
                query[i * queries + j, : len(row)] = row
                asked[i * queries + j, len(row) - _DIGITS : len(row)] = True
        return Batch(context, mask, query, asked)

    def _fact(self, quality: str, thing: str, code: str) -> list[int]:
        return self._encode(f" The code of the {quality} {thing} is {code}.")

    def _hidden(
        self, rng: np.random.Generator, sentences: Sequence[list[int]], length: int, part: str
    ) -> np.ndarray:
        """Return facts in their order at random places of a text, all together `length` tokens."""
        filler = self._filler[part]
        room = length - sum(map(len, sentences))
        cuts = np.concatenate([[0], np.sort(rng.integers(0, room + 1, len(sentences)))])
        pieces: list[Any] = []
        for cut, before, tokens in zip(cuts[1:], cuts, sentences, strict=False):
            pieces += [_stretch(rng, filler, cut - before), tokens]
        pieces.append(_stretch(rng, filler, room - cuts[-1]))
        return np.concatenate(pieces).astype(np.int32)


def _pairs(part: str) -> list[tuple[str, str]]:
    pairs = [(quality, thing) for quality in _QUALITIES for thing in _THINGS]
    held_out = [pair for number, pair in enumerate(pairs) if number * 7 % 11 < 2]
    return held_out if part == "test" else [pair for pair in pairs if pair not in set(held_out)]


def _stretch(rng: np.random.Generator, tokens: np.ndarray, length: int) -> np.ndarray:
    start = rng.integers(0, max(len(tokens) - length, 0) + 1)
    return tokens[start : start + length]


def _shorter(rng: np.random.Generator, most: int, least: int = 16) -> int:
    """Draw the length of a context in training, short ones as often as long ones."""
    least = min(max(least, 16), most)
    return round(float(np.exp(rng.uniform(np.log(least), np.log(most)))))
