"""The README.md of an exported model: only what the files themselves show."""

from collections.abc import Mapping
from typing import Any

from export.tokenizer_files import SpecialTokens
from export.weights import Weights
from pipelines.checkpoints import Checkpoint

_CHAT = """messages = [{"role": "user", "content": "Hello"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
_TEXT = 'prompt = tokenizer("Hello", return_tensors="pt")'


def model_card(
    checkpoint: Checkpoint, config: Mapping[str, Any], weights: Weights, special: SpecialTokens, *, chats: bool
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        chats: whether there is a chat template to show the use of.
    """
    stop = ", ".join(str(id_) for id_ in special.stop) or "none"
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- packtrain
---

# {config["architectures"][0]}, {weights.parameters:,} parameters

Trained with packtrain: {checkpoint.step:,} optimizer steps over {checkpoint.packs_consumed:,} packs of tokens.

| | |
|---|---|
| Architecture | `{config["architectures"][0]}` |
| Vocabulary | {config["vocab_size"]:,} |
| Numbers | {weights.dtype}, each rounded once from the float32 training state |
| Stop tokens | {stop} |
| Checkpoint | `{checkpoint.manifest.identity}` |

What it was trained on, its licence and what it is good for are not known to the exporter; add them before sharing it.
`manifest.json` lists every file with its SHA-256 and what was compared after writing.

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{_CHAT if chats else _TEXT}
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=128)[0]))
```
"""
