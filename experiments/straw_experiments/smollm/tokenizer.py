"""Text to tokens and back: a byte-level BPE, and the turns of a conversation."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

Question: TypeAlias = str | Sequence[Mapping[str, str]]
"""A text of the user's, or a conversation, see `Tokenizer.chat`."""

_START, _END = "<|im_start|>", "<|im_end|>"
_ROLES = ("system", "user", "assistant")
SYSTEM = "You are a helpful AI assistant named SmolLM, trained by Hugging Face"
"""What a conversation begins with that has no turn "system" of its own, as in training."""


class Tokenizer:
    """The tokenizer of SmolLM2.

    Text is cut into digits, words, numbers of other signs and spaces, and each piece into tokens,
    by the byte-level BPE of the `tokenizers` package. Special tokens are never made of text: a
    document that contains `<|im_end|>` ends no turn.

    Attributes:
        vocabulary: Number of tokens.
        end_of_turn: The token after which an answer is complete.
    """

    def __init__(
        self, tokens: Sequence[str], merges: Iterable[str], special: Sequence[str]
    ) -> None:
        """Make a tokenizer.

        Args:
            tokens: Their texts by number, bytes written as signs, as in GPT-2's vocabulary.
            merges: Pairs of tokens that become one, `"a b"`, the most important first.
            special: Tokens that are no text, among them `<|im_start|>` and `<|im_end|>`.

        Raises:
            ValueError: Merges or special tokens are not of these tokens.
        """
        from tokenizers import AddedToken, decoders, models, pre_tokenizers
        from tokenizers import Tokenizer as Backend

        vocabulary = {token: number for number, token in enumerate(tokens)}
        pairs = [(first, second) for first, _, second in (each.partition(" ") for each in merges)]
        if lacking := {_START, _END} - set(special) or set(special) - set(vocabulary):
            raise ValueError(f"Tokenizer: expected the special tokens {sorted(lacking)}, got none.")
        try:
            model = models.BPE(vocabulary, pairs)
        except Exception as error:  # the package raises no narrower one
            raise ValueError(
                f"Tokenizer: expected merges of tokens, got others: {error}."
            ) from error
        self._backend = Backend(model)
        self._backend.pre_tokenizer = pre_tokenizers.Sequence(
            [
                pre_tokenizers.Digits(individual_digits=True),
                pre_tokenizers.ByteLevel(add_prefix_space=False),
            ]
        )
        self._backend.decoder = decoders.ByteLevel()
        self._backend.add_special_tokens([AddedToken(token, special=True) for token in special])
        self._backend.encode_special_tokens = True  # as text, that is
        self.vocabulary = len(tokens)
        self.end_of_turn = vocabulary[_END]
        self._start = vocabulary[_START]

    def encode(self, text: str) -> list[int]:
        """Return the tokens of a text; nothing is added before or after it."""
        found: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        return found

    def decode(self, tokens: Iterable[int]) -> str:
        """Return the text of tokens, without special ones."""
        text: str = self._backend.decode([int(token) for token in tokens])
        return text

    def chat(self, turns: Question) -> list[int]:
        """Return the tokens of a conversation, up to where the assistant's answer begins.

        Args:
            turns: Each `{"role": "system", "user" or "assistant", "content": text}`; a text alone
                is one turn of the user. Without a first turn "system" there is the usual one,
                `SYSTEM`; for none, give one with an empty content.

        Raises:
            ValueError: A turn is none, or the last one is the assistant's.
        """
        turns = [{"role": "user", "content": turns}] if isinstance(turns, str) else list(turns)
        for turn in turns:
            if turn.keys() != {"role", "content"} or turn["role"] not in _ROLES:
                raise ValueError(
                    f"chat: expected turns with a role of {_ROLES} and a content, got {turn!r}."
                )
        if not turns or turns[-1]["role"] == "assistant":
            raise ValueError(
                f"chat: expected a conversation that the assistant is to answer, got {turns!r}."
                " End it with a turn of the user."
            )
        if turns[0]["role"] != "system":
            turns = [{"role": "system", "content": SYSTEM}, *turns]
        start, end = self._start, self.end_of_turn
        newline = self.encode("\n")
        tokens: list[int] = []
        for turn in turns:
            text = self.encode(f"{turn['role']}\n{turn['content']}")
            tokens += [start, *text, end, *newline]
        return [*tokens, start, *self.encode("assistant\n")]
