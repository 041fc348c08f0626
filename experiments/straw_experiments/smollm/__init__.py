"""SmolLM2, a small pretrained language model, as plain JAX functions.

- `model`: sizes, parameters, logits, hidden states, a cache of keys and values.
- `weights`: a GGUF file is found and read.
- `tokenizer`: text to tokens and back, turns of a conversation.
- `generate`: continuations in one compiled loop, and answers to questions.

`model` and `generation` need jax and flax alone, the rest the extra "smollm".
"""
