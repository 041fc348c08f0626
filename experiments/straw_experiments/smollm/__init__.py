"""SmolLM2, a small pretrained language model, as plain JAX functions.

- `model`: sizes, parameters, logits, hidden states, a cache of keys and values.
- `weights`: a GGUF file is found and read.
- `tokenizer`: text to tokens and back, turns of a conversation.
- `generation`: continuations in one compiled loop, and answers to questions.

`weights.load` and `tokenizer` need the extra "smollm", the rest jax and flax alone.
"""
