"""What a version of Transformers makes of exported directories: run as a script, by each version in turn.

python as_loaded.py FOLDER...    writes FOLDER.json and FOLDER.safetensors for the Transformers that is imported
"""

import json
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

TEXTS = ["Hello  world", " é短\n\tx", "<|im_start|>user\nhi<|im_end|>", "a<|new|> b", ""]
CHATS = [
    [{"role": "user", "content": "hi"}],
    [
        {"role": "system", "content": "短"},
        {"role": "user", "content": "  é\n"},
        {"role": "assistant", "content": "<b>"},
    ],
]


def as_loaded(folder: Path) -> dict[str, Any]:
    """Everything a user of the directory would notice, but for the logits."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model, info = AutoModelForCausalLM.from_pretrained(
        folder, torch_dtype="auto", attn_implementation="eager", output_loading_info=True
    )
    model.eval()
    # Longer than the positions that some scaled rotary embeddings were trained with.
    ids = torch.tensor([[(7 * position) % 250 + 3 for position in range(24)]])
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits
        said = model.generate(ids[:, :6], do_sample=False, max_new_tokens=6, top_p=None, temperature=None, top_k=None)
    save_file({"logits": logits.contiguous()}, f"{folder}.safetensors")
    generation = json.loads((folder / "generation_config.json").read_text())
    return {
        "gaps": {what: sorted(map(str, names)) for what, names in info.items() if names},
        "said": said.tolist(),
        "dtype": str(model.dtype),
        "rows": model.config.vocab_size,
        "tied": model.get_output_embeddings().weight is model.get_input_embeddings().weight,
        "config": [getattr(model.config, f"{part}_token_id") for part in ("bos", "eos", "pad")],
        "generation": {key: getattr(model.generation_config, key) for key in generation},
        "special": [tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id],
        "texts": [tokenizer(text).input_ids for text in TEXTS],
        "back": [tokenizer.decode(tokenizer(text).input_ids, skip_special_tokens=True) for text in TEXTS],
        "chats": [
            tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=prompted)
            for chat in CHATS
            for prompted in (True, False)
        ],
    }


def main() -> None:
    warnings.simplefilter("ignore")
    transformers.utils.logging.set_verbosity_error()
    torch.set_num_threads(1)
    for name in sys.argv[1:]:
        found = as_loaded(Path(name))
        Path(f"{name}.json").write_text(json.dumps(found, sort_keys=True))
    print(transformers.__version__)


if __name__ == "__main__":
    main()
