"""A tiny Llama: a GGUF file of it, and a reference in NumPy that loops over layers and heads."""

import gguf
import numpy as np

WIDTH, LAYERS, HEADS, KV_HEADS, MLP, BASE, EPSILON = 32, 2, 4, 2, 64, 500.0, 1e-4
HEAD = WIDTH // HEADS
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["t h", "th e", "Ġ the", "i n", "Ġ Ġ", "e n"]
_PRINTED = [*range(33, 127), *range(161, 173), *range(174, 256)]


def byte_signs():
    """The signs that stand for bytes, by byte."""
    others = iter(range(256, 512))
    return [chr(byte) if byte in _PRINTED else chr(next(others)) for byte in range(256)]


TOKENS = [*SPECIAL, *byte_signs(), *(merge.replace(" ", "") for merge in MERGES)]
_UNUSED = -len(TOKENS) % 32
TOKENS += [f"<unused{i}>" for i in range(_UNUSED)]


def random_tensors(seed=0):
    """Tensors by name, as `[out, in]`, and the format of each."""
    random = np.random.default_rng(seed)
    q4, q8, full = (gguf.GGMLQuantizationType[name] for name in ("Q4_1", "Q8_0", "F32"))

    def kernel(rows, columns):
        return random.normal(size=(rows, columns), scale=columns**-0.5).astype(np.float32)

    def gain():
        return random.uniform(0.5, 1.5, WIDTH).astype(np.float32)

    tensors = {
        "token_embd.weight": (kernel(len(TOKENS), WIDTH), q8),
        "output_norm.weight": (4 * gain(), full),
    }
    for i in range(LAYERS):
        of_layer = {
            "attn_norm": (gain(), full),
            "attn_q": (2 * kernel(WIDTH, WIDTH), q4),
            "attn_k": (2 * kernel(KV_HEADS * HEAD, WIDTH), q4),
            "attn_v": (kernel(KV_HEADS * HEAD, WIDTH), q8 if i else q4),
            "attn_output": (kernel(WIDTH, WIDTH), full if i else q4),
            "ffn_norm": (gain(), full),
            "ffn_gate": (kernel(MLP, WIDTH), q4),
            "ffn_up": (kernel(MLP, WIDTH), q4),
            "ffn_down": (kernel(WIDTH, MLP), q4),
        }
        tensors |= {f"blk.{i}.{name}.weight": tensor for name, tensor in of_layer.items()}
    return tensors


def write(path, tensors, **changed):
    """Write a GGUF file, with some of its fields changed; None leaves one out."""
    writer = gguf.GGUFWriter(path, "llama")
    kinds = [gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (len(TOKENS) - 3)
    fields = {
        "block_count": LAYERS,
        "context_length": 160,
        "embedding_length": WIDTH,
        "feed_forward_length": MLP,
        "head_count": HEADS,
        "head_count_kv": KV_HEADS,
        "rope_freq_base": BASE,
        "layer_norm_rms_eps": EPSILON,
        "tokenizer_model": "gpt2",
        "tokenizer_pre": "smollm",
        "token_list": TOKENS,
        "token_types": kinds,
        "token_merges": MERGES,
    }
    for name, value in (fields | changed).items():
        if value is not None:
            getattr(writer, f"add_{name}")(value)
    for name, (weights, kind) in tensors.items():
        stored = gguf.quantize(weights, kind)
        writer.add_tensor(name, stored, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def dequantised(tensors):
    """What can be read of tensors, float64."""
    return {
        name: gguf.dequantize(gguf.quantize(weights, kind), kind).astype(np.float64)
        for name, (weights, kind) in tensors.items()
    }


def logits(tensors, tokens):
    """The logits of one text, `[time, vocabulary]`; neighbours in a head turn together."""
    x = tensors["token_embd.weight"][tokens]
    for i in range(LAYERS):
        w = {
            name.split(".")[2]: each
            for name, each in tensors.items()
            if name.startswith(f"blk.{i}.")
        }
        normed = _norm(x, w["attn_norm"])
        q, k, v = (normed @ w[f"attn_{name}"].T for name in "qkv")
        mixed = np.zeros_like(q)
        for head in range(HEADS):
            own = slice(head * HEAD, (head + 1) * HEAD)
            other = head // (HEADS // KV_HEADS)
            shared = slice(other * HEAD, (other + 1) * HEAD)
            queries, keys = _turned(q[:, own]), _turned(k[:, shared])
            for t in range(len(tokens)):
                scores = keys[: t + 1] @ queries[t] / np.sqrt(HEAD)
                shares = np.exp(scores - scores.max())
                mixed[t, own] = shares / shares.sum() @ v[: t + 1, shared]
        x = x + mixed @ w["attn_output"].T
        normed = _norm(x, w["ffn_norm"])
        gate = normed @ w["ffn_gate"].T
        x = x + (gate / (1 + np.exp(-gate)) * (normed @ w["ffn_up"].T)) @ w["ffn_down"].T
    return _norm(x, tensors["output_norm.weight"]) @ tensors["token_embd.weight"].T


def _norm(x, gain):
    return x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + EPSILON) * gain


def _turned(x):
    turned = np.empty_like(x)
    for t, row in enumerate(x):
        for pair in range(HEAD // 2):
            angle = t * BASE ** (-2 * pair / HEAD)
            number = complex(row[2 * pair], row[2 * pair + 1]) * np.exp(1j * angle)
            turned[t, 2 * pair : 2 * pair + 2] = number.real, number.imag
    return turned
