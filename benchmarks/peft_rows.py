"""PEFT's mixed batch in a process of its own, started by `adapters.py`.

It gets the path of a GGUF file and the folders of adapters, and answers each line of JSON with one.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any


def held(what: str) -> int:
    """Return bytes of memory that this process holds, "VmRSS", or held at most, "VmHWM"."""
    lines = Path("/proc/self/status").read_text().splitlines()
    found = dict(line.split(":", 1) for line in lines)
    return int(found[what].split()[0]) * 1024


def build(weights: Path, folders: list[str]) -> Any:
    """Return the model with all adapters, named by their numbers."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        str(weights.parent), gguf_file=weights.name, dtype=torch.float32
    )
    first, *others = folders
    adapted = PeftModel.from_pretrained(model, first, adapter_name="0")
    for i, folder in enumerate(others, 1):
        adapted.load_adapter(folder, adapter_name=str(i))
    config = model.generation_config
    config.eos_token_id, config.pad_token_id = None, 0  # no text ends early
    return adapted.eval()


def compute(model: Any, message: dict[str, Any]) -> Any:
    """Return logits, or the tokens that are generated."""
    import torch

    tokens = torch.tensor(message["tokens"])
    names = [str(row) for row in message["rows"]]
    with torch.inference_mode():
        if message["section"] == "forward":
            return model(input_ids=tokens, use_cache=False, adapter_names=names).logits
        found = model.generate(
            input_ids=tokens,
            attention_mask=torch.ones_like(tokens),
            adapter_names=names,
            do_sample=False,
            max_new_tokens=message["new"],
        )
        return found[:, tokens.shape[1] :]


def main() -> None:
    """Answer until there is nothing more to read."""
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # for what libraries print

    def answer(**message: Any) -> None:
        print(json.dumps(message), file=answers, flush=True)

    try:
        import numpy as np
        import peft
        import torch
        import transformers

        imports = held("VmRSS")
        model = build(Path(sys.argv[1]), sys.argv[2:])
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    except Exception as error:  # whatever a library raises says why there are no figures
        text = " ".join(str(error).split())[:200]
        answer(error=f"{type(error).__name__}: {text}")
        return
    found = {each.__name__: each.__version__ for each in (torch, transformers, peft)}
    answer(versions=found)
    seconds = 0.0
    for line in sys.stdin:
        message = json.loads(line)
        try:
            if message["section"] == "memory":
                answer(bytes=held("VmHWM") - imports)
            elif message["section"] == "seconds":
                answer(seconds=seconds)
            else:
                start = time.perf_counter()
                y = compute(model, message)
                seconds = time.perf_counter() - start
                np.save(message["file"], y.numpy())
                del y
                answer(done=True)
        except Exception as error:  # as above
            text = " ".join(str(error).split())[:200]
            answer(error=f"{type(error).__name__}: {text}")


if __name__ == "__main__":
    main()
