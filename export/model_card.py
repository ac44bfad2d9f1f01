"""The README.md of an exported model: only what the files themselves show."""

from collections.abc import Mapping
from typing import Any

from export.source import Source
from export.weights import Weights
from pipelines.artifacts import Json
from pipelines.tokenizer_files import SpecialTokens

_CHAT = """messages = [{"role": "user", "content": "Hello"}]
prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=True)"""
_TEXT = 'prompt = tokenizer("Hello", return_tensors="pt")'
_EXAMPLE = """```python
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder)
{prompt}
print(tokenizer.decode(model.generate(**prompt, max_new_tokens=128)[0]))
```
"""
_ADAPTER = """```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoPeftModelForCausalLM.from_pretrained(folder)
```
"""
_GROWN_ADAPTER = """Tokens were added to it, and the adapter holds the embedding whole; the base is made as large first.

```python
from peft import PeftConfig, PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained(folder)
base = AutoModelForCausalLM.from_pretrained(PeftConfig.from_pretrained(folder).base_model_name_or_path)
base.resize_token_embeddings({rows})
model = PeftModel.from_pretrained(base, folder)
```
"""
_ADAPTER_ON_ORIGINAL = """Its base is stored as it was published, and was trained as the Llama that it is: the adapter
has Llama's names, so PEFT cannot put it on the published code. `packtrain chat` loads it as it is; for other engines,
export "hf", where it is merged, in either layout.
"""
_ORIGINAL = """It has the layout and the config.json that the model came with, for engines that know it. Transformers
knows it only with the Python files that `auto_map` names, which are not part of an export; copy them from the original.
"""
_MERGING = """
## Merged from 4 bits

The adapter was trained on the model in 4 bits ({type}) and can be merged into one of two bases: the original, or the
4-bit numbers unpacked, which training multiplied with. How far either is from what was trained (this model is the one
in bold):

| base | all matrices, relative | worst matrix | logits of the probe prompts |
|---|---|---|---|
{rows}
"""


def model_card(
    checkpoint: Source,
    config: Mapping[str, Any],
    weights: Weights,
    special: SpecialTokens,
    *,
    chats: bool,
    original: bool = False,
    merging: Json = None,
) -> str:
    """Markdown with the front matter that model hubs read.

    Args:
        chats: whether there is a chat template to show the use of.
        original: whether it is in a layout that Transformers has no class for.
        merging: how far it is from what was trained, of an adapter on 4 bits merged onto one base or the other.
    """
    stop = ", ".join(str(id_) for id_ in special.stop) or "none"
    architecture = (config.get("architectures") or [config["model_type"]])[0]
    use = _ORIGINAL if original else _EXAMPLE.format(prompt=_CHAT if chats else _TEXT)
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags:
- packtrain
---

# {architecture}, {weights.parameters:,} parameters

{_origin(checkpoint)}

| | |
|---|---|
| Architecture | `{architecture}` |
| Vocabulary | {config["vocab_size"]:,} |
| Numbers | {weights.dtype}, each rounded once from {_numbers(checkpoint)}{_kept(weights)} |
| Stop tokens | {stop} |
| Checkpoint | `{checkpoint.manifest.identity}` |

What it was trained on, its licence and what it is good for are not known to the exporter; add them before sharing it.
`manifest.json` lists every file with its SHA-256 and what was compared after writing.
{_merging(merging)}
{use}"""


def _merging(merging: Json) -> str:
    if merging is None:
        return ""
    rows = []
    for base in ("original", "dequantized"):
        one = merging[base]
        logits = "not measured" if one["logits"] is None else f"{one['logits']:g}"
        name = f"**{base}**" if base == merging["base"] else base
        worst = f"{one['worst']['relative']:.2%} in `{one['worst']['matrix']}`"
        rows.append(f"| {name} | {one['relative']:.3%} | {worst} | {logits} |")
    return _MERGING.format(type=merging["type"], rows="\n".join(rows))


def _kept(weights: Weights) -> str:
    kept = sum(weights.dtype_of(name) != weights.dtype for name in weights.shapes)
    return f"; {kept:,} of the tensors in float32, with which the model computes" if kept else ""


def _origin(checkpoint: Source) -> str:
    facts, step = checkpoint.manifest.facts, checkpoint.step
    if "format" not in facts:
        return f"Trained with packtrain: {step:,} optimizer steps over {checkpoint.packs_consumed:,} packs of tokens."
    after = f", after {step:,} optimizer steps" if step else ""
    return f"Written by packtrain from a checkpoint of {facts['format']}{after}."


def _numbers(checkpoint: Source) -> str:
    return "the checkpoint's" if "format" in checkpoint.manifest.facts else "the float32 training state"


def adapter_card(
    checkpoint: Source,
    weights: Weights,
    special: SpecialTokens,
    *,
    rows: int | None = None,
    original: bool = False,
) -> str:
    """The same for an adapter alone.

    Args:
        rows: of the embedding that it brings along, where the base has others.
        original: whether the base is stored in a layout of its own.
    """
    config = checkpoint.adapter["config"]
    packed = (checkpoint.manifest.facts.get("settings", {}).get("model", {})).get("quantization")
    how = f", in 4 bits ({packed['bnb_4bit_quant_type']}) while training" if packed else ""
    kind = "DoRA" if config["use_dora"] else "rsLoRA" if config["use_rslora"] else "LoRA"
    return f"""---
library_name: peft
pipeline_tag: text-generation
tags:
- packtrain
- lora
---

# {kind} adapter of rank {config["r"]}, {weights.parameters:,} parameters

Trained with packtrain: {checkpoint.step:,} optimizer steps over {checkpoint.packs_consumed:,} packs of tokens.

| | |
|---|---|
| Numbers | float32, as they were trained |
| Stop tokens | {", ".join(str(id_) for id_ in special.stop) or "none"} |
| Base | weights of SHA-256 `{checkpoint.adapter["base"]["sha256"]}`{how} |
| Checkpoint | `{checkpoint.manifest.identity}` |

It works on the model that it was trained on and no other. The base's digest is over the names and SHA-256 of its
safetensors files.

{_ADAPTER_ON_ORIGINAL if original else _ADAPTER if rows is None else _GROWN_ADAPTER.format(rows=rows)}"""
