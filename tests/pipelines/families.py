"""The families of the ready pipelines: a tiny random model of each, its kind of tokenizer, and what its chats become.

A chat template has the form that the family's published one has. `chat` is what it makes of `TALK`, written out by
hand, with what is trained between the marks.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers, processors

from tests.prep.folders import byte_level, spm

SYSTEM = ("system", "Be brief.")
TALK = (("user", "上海 №?"), ("assistant", "A city."), ("user", "and № the fox"), ("assistant", "quick №"))
"""`№` is the number of the chat."""
DENSE: dict[str, Any] = {
    "hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 512, "vocab_size": 700,
    "tie_word_embeddings": False,
}  # fmt: skip
"""Heads that TurboMind has kernels for, and whole blocks of 4 bits."""
EXPERTS = {
    "num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64,
    "n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1,
}  # fmt: skip
MLA = {
    "num_key_value_heads": 2, "q_lora_rank": None, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16,
    "v_head_dim": 16, "head_dim": 8,
}  # fmt: skip
WINDOWS = {"sliding_window": 24, "layer_types": ["sliding_attention", "full_attention"]}
ORIGINAL = {
    "hidden_act": "silu", "rms_norm_eps": 1e-5, "torch_dtype": "float32", "hidden_size": 256,
    "num_attention_heads": 4, "num_key_value_heads": 2,
    "auto_map": {"AutoModelForCausalLM": "modeling.Model"},
}  # fmt: skip
"""Of models that come with code of their own, which nothing runs."""


@dataclass(frozen=True)
class Family:
    """Recipes whose model and chats are of one kind."""

    recipes: Sequence[str]
    model_type: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    """Of config.json, over those of DENSE."""
    template: str = ""
    """The tokenizer's own; "" where it has none."""
    special: Sequence[str] = ("<unk>", "<s>", "</s>")
    """Tokens, from id 0 on."""
    bos: str | None = "<s>"
    eos: str = "</s>"
    sentencepiece: bool = False
    prefix: bool = True
    """Whether sentencepiece puts a space before a text."""
    adds_bos: bool = False
    """Whether the tokenizer puts BOS before plain text."""
    system: bool = True
    """Whether chats may have a system text."""
    chat: str = ""
    turbomind: str | None = None
    """How export.turbomind.mode is set; None where TurboMind has no such model, or another family shows it."""
    said: bool = True
    """Whether LMDeploy's form of a template can say this one."""

    @property
    def spaced(self) -> bool:
        """Whether a text of its own begins with a space."""
        return self.sentencepiece and self.prefix


def chatml(before: str = "") -> str:
    """A template of turns between <|im_start|> and <|im_end|>."""
    return (
        before
        + "{%- for message in messages -%}"
        + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
        + "{%- endfor -%}{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}{%- endif -%}"
    )


def by_role(before: str = "", end: str = "", **parts: str) -> str:
    """A template with a Jinja expression for every role, in which `text` is what the message says."""
    first, *others = parts.items()
    chosen = f"{{%- if message['role'] == '{first[0]}' -%}}{{{{- {first[1]} -}}}}"
    for role, expression in others:
        if role != "prompt":
            chosen += f"{{%- elif message['role'] == '{role}' -%}}{{{{- {expression} -}}}}"
    chosen += "{%- else -%}{{- raise_exception('no such role') -}}{%- endif -%}"
    prompt = parts.get("prompt", "''")
    return (
        f"{before}{{%- for message in messages -%}}{{%- set text = message['content'] | trim -%}}{chosen}"
        "{%- endfor -%}"
        f"{end}{{%- if add_generation_prompt -%}}{{{{- {prompt} -}}}}{{%- endif -%}}"
    )


BOS = "{{- bos_token -}}"
IM = ("<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>")
QWEN = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
HEADERS = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
LLAMA3 = (
    "{%- for message in messages -%}{%- if loop.first -%}{{- bos_token -}}{%- endif -%}"
    "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    "{%- endfor -%}{%- if add_generation_prompt -%}"
    "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}"
)
PREFIXED_CHAT = (
    "<s> <|System|>:Be brief.\n<|User|>:上海 №?\n<|Bot|>:⟦ A city.</s>⟧ \n"
    "<s> <|User|>:and № the fox\n<|Bot|>:⟦ quick №</s>⟧ \n"
)
"""Llama 2's tokenizer puts a space before every text of its own, behind a token too."""
DEFAULT_CHAT = (
    "<s><|System|>:Be brief.\n<|User|>:上海 №?\n<|Bot|>:⟦A city.</s>⟧\n"
    "<s><|User|>:and № the fox\n<|Bot|>:⟦quick №</s>⟧\n"
)
CHATML_CHAT = (
    "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n上海 №?<|im_end|>\n"
    "<|im_start|>assistant\n⟦A city.<|im_end|>⟧\n<|im_start|>user\nand № the fox<|im_end|>\n"
    "<|im_start|>assistant\n⟦quick №<|im_end|>⟧\n"
)
LLAMA3_CHAT = (
    "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nBe brief.<|eot_id|>"
    "<|start_header_id|>user<|end_header_id|>\n\n上海 №?<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦A city.<|eot_id|>⟧"
    "<|start_header_id|>user<|end_header_id|>\n\nand № the fox<|eot_id|>"
    "<|start_header_id|>assistant<|end_header_id|>\n\n⟦quick №<|eot_id|>⟧"
)

DEEPSEEK_CHAT = (
    "<｜begin▁of▁sentence｜>Be brief.\n\nUser: 上海 №?\n\nAssistant:⟦ A city.<｜end▁of▁sentence｜>⟧"
    "User: and № the fox\n\nAssistant:⟦ quick №<｜end▁of▁sentence｜>⟧"
)
GEMMA_TOKENS = ("<pad>", "<bos>", "<eos>", "<start_of_turn>", "<end_of_turn>")
GEMMA = by_role(
    BOS,
    user="'<start_of_turn>user\\n' + text + '<end_of_turn>\\n'",
    assistant="'<start_of_turn>model\\n' + text + '<end_of_turn>\\n'",
    prompt="'<start_of_turn>model\\n'",
)
GEMMA_CHAT = (
    "<bos><start_of_turn>user\n上海 №?<end_of_turn>\n<start_of_turn>model\n⟦A city.<end_of_turn>⟧\n"
    "<start_of_turn>user\nand № the fox<end_of_turn>\n<start_of_turn>model\n⟦quick №<end_of_turn>⟧\n"
)
QWEN_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}{{- '<|im_start|>system\\nYou are of use.<|im_end|>\\n' -}}{%- endif -%}"
)
THINKING = (
    "{%- set last = namespace(query=0) -%}{%- for message in messages -%}"
    "{%- if message['role'] == 'user' -%}{%- set last.query = loop.index0 -%}{%- endif -%}{%- endfor -%}"
    "{%- for message in messages -%}{{- '<|im_start|>' + message['role'] + '\\n' -}}"
    "{%- if message['role'] == 'assistant' and loop.index0 > last.query -%}"
    "{%- if loop.last or message['reasoning_content'] -%}"
    "{{- '<think>\\n' + (message['reasoning_content'] or '') + '\\n</think>\\n\\n' -}}{%- endif -%}{%- endif -%}"
    "{{- message['content'] + '<|im_end|>\\n' -}}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' -}}"
    "{%- if enable_thinking is false -%}{{- '<think>\\n\\n</think>\\n\\n' -}}{%- endif -%}"
    "{%- endif -%}"
)
HARMONY = (
    "{%- for message in messages -%}"
    "{%- if message['role'] == 'assistant' -%}"
    "{{- '<|start|>assistant<|channel|>final<|message|>' + message['content'] -}}"
    "{{- '<|return|>' if loop.last and not add_generation_prompt else '<|end|>' -}}"
    "{%- else -%}{%- set role = 'developer' if message['role'] == 'system' else message['role'] -%}"
    "{{- '<|start|>' + role + '<|message|>' + message['content'] + '<|end|>' -}}{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|start|>assistant' -}}{%- endif -%}"
)
ROPE3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}  # fmt: skip

FAMILIES: dict[str, Family] = {
    "Llama 2": Family(
        ("llama2-7b-full-2k", "llama2-7b-qlora-2k", "llama2-7b-pretrain-2k"),
        "llama", sentencepiece=True, adds_bos=True, chat=PREFIXED_CHAT, turbomind="workspace", said=False,
    ),
    "Llama 2 chat": Family(
        ("llama2-7b-chat-lora-2k", "llama2-7b-chat-qlora-2k"),
        "llama",
        template="{%- set given = namespace(system='') -%}"
        "{%- for message in messages -%}{%- set text = message['content'] | trim -%}"
        "{%- if message['role'] == 'system' -%}{%- set given.system = '<<SYS>>\\n' + text + '\\n<</SYS>>\\n\\n' -%}"
        "{%- elif message['role'] == 'user' -%}{{- bos_token + '[INST] ' + given.system + text + ' [/INST]' -}}"
        "{%- set given.system = '' -%}{%- else -%}{{- ' ' + text + ' ' + eos_token -}}{%- endif -%}{%- endfor -%}",
        sentencepiece=True, adds_bos=True,
        chat="<s> [INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n上海 №? [/INST]⟦ A city. </s>⟧"
        "<s> [INST] and № the fox [/INST]⟦ quick № </s>⟧",
        turbomind="workspace", said=False,
    ),
    "Llama 3": Family(
        ("llama3-8b-full-2k", "llama3.1-8b-full-32k-ftdp"),
        "llama", special=HEADERS, bos="<|begin_of_text|>", eos="<|end_of_text|>", adds_bos=True, chat=LLAMA3_CHAT,
        turbomind="workspace",
    ),
    "Llama 3 instruct": Family(
        ("llama3-8b-instruct-qlora-2k",),
        "llama", template=LLAMA3, special=HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>", adds_bos=True,
        chat=LLAMA3_CHAT,
    ),
    "Llama 3.1": Family(
        ("llama3.1-8b-instruct-full-1m", "llama3.1-8b-instruct-lora-32k"),
        "llama",
        {"rope_parameters": ROPE3},
        template=LLAMA3, special=HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>", adds_bos=True, chat=LLAMA3_CHAT,
    ),
    "Llama 3.2": Family(
        ("llama3.2-1b-instruct-lora-2k",),
        "llama",
        {"tie_word_embeddings": True, "rope_parameters": ROPE3},
        template=LLAMA3, special=HEADERS, bos="<|begin_of_text|>", eos="<|eot_id|>", adds_bos=True, chat=LLAMA3_CHAT,
    ),
    "InternLM2": Family(
        ("internlm2-7b-full-128k", "internlm2-7b-full-32k-ftdp", "internlm2-1.8b-qlora-2k",
         "internlm2-20b-pretrain-32k"),
        "internlm2", sentencepiece=True, prefix=False, adds_bos=True, chat=DEFAULT_CHAT, turbomind="workspace",
        said=False,
    ),
    "InternLM2 chat": Family(
        ("internlm2-chat-7b-full-32k", "internlm2-chat-7b-lora-2k", "internlm2.5-7b-chat-qlora-2k"),
        "internlm2", template=chatml(BOS), special=IM, sentencepiece=True, prefix=False, adds_bos=True,
        chat="<s>" + CHATML_CHAT,
    ),
    "InternLM3": Family(
        ("internlm3-8b-instruct-full-2k", "internlm3-8b-instruct-lora-2k"),
        "internlm3", template=chatml(BOS), special=IM, sentencepiece=True, prefix=False, adds_bos=True,
        chat="<s>" + CHATML_CHAT,
        turbomind="workspace",
    ),
    "Baichuan 2": Family(
        ("baichuan2-7b-full-2k", "baichuan2-7b-qlora-2k"),
        "baichuan", sentencepiece=True, prefix=False, chat=DEFAULT_CHAT, turbomind="workspace", said=False,
    ),
    "Qwen 1.5": Family(
        ("qwen1.5-7b-chat-full-2k", "qwen1.5-7b-chat-qlora-2k"),
        "qwen2", template=chatml(), special=QWEN, bos=None, eos="<|im_end|>", chat=CHATML_CHAT, turbomind="workspace",
    ),
    "Qwen 2.5": Family(
        ("qwen2.5-7b-instruct-lora-2k", "qwen2.5-7b-full-32k-ftdp", "qwen2.5-7b-pretrain-32k"),
        "qwen2", template=chatml(QWEN_SYSTEM), special=QWEN, bos=None, eos="<|im_end|>",
        system=False,
        chat=CHATML_CHAT.replace("Be brief.", "You are of use."),
        turbomind="workspace",
    ),
    "Qwen 2.5 0.5B": Family(
        ("qwen2.5-0.5b-instruct-full-2k",),
        "qwen2", {"tie_word_embeddings": True},
        template=chatml(QWEN_SYSTEM), special=QWEN, bos=None, eos="<|im_end|>", chat=CHATML_CHAT,
        turbomind="hf_direct",
    ),
    "Qwen 3": Family(
        ("qwen3-8b-full-2k", "qwen3-8b-lora-2k", "qwen3-8b-qlora-2k", "qwen3-8b-base-pretrain-32k"),
        "qwen3", template=THINKING, special=(*QWEN, "<think>", "</think>"), bos=None, eos="<|im_end|>",
        chat=CHATML_CHAT.replace("⟦quick", "⟦<think>\n\n</think>\n\nquick"),
        turbomind="hf_direct",
    ),
    "Qwen 3 A3B": Family(
        ("qwen3-30b-a3b-full-2k", "qwen3-30b-a3b-lora-2k"),
        "qwen3_moe", EXPERTS, template=chatml(), special=QWEN, bos=None, eos="<|im_end|>", chat=CHATML_CHAT,
        turbomind="hf_direct",
    ),
    "Mistral": Family(
        ("mistral-7b-full-2k", "mistral-7b-pretrain-32k"),
        "mistral", {"sliding_window": None}, sentencepiece=True, adds_bos=True, chat=PREFIXED_CHAT,
        turbomind="workspace", said=False,
    ),
    "Mistral instruct": Family(
        ("mistral-7b-instruct-lora-2k",),
        "mistral", {"sliding_window": 24},
        template=by_role(BOS, user="'[INST] ' + text + '[/INST]'", assistant="' ' + text + eos_token"),
        special=("<unk>", "<s>", "</s>", "[INST]", "[/INST]"), sentencepiece=True, adds_bos=True, system=False,
        chat="<s>[INST]  上海 №?[/INST]⟦ A city.</s>⟧[INST]  and № the fox[/INST]⟦ quick №</s>⟧",
    ),
    "Zephyr": Family(
        ("zephyr-7b-beta-qlora-2k",),
        "mistral", {"sliding_window": 24},
        template=by_role(
            system="'<|system|>\\n' + text + eos_token + '\\n'", user="'<|user|>\\n' + text + eos_token + '\\n'",
            assistant="'<|assistant|>\\n' + text + eos_token + '\\n'", prompt="'<|assistant|>\\n'",
        ),
        sentencepiece=True, adds_bos=True,
        chat=" <|system|>\nBe brief.</s> \n<|user|>\n上海 №?</s> \n<|assistant|>\n⟦A city.</s>⟧\n"
        "<|user|>\nand № the fox</s> \n<|assistant|>\n⟦quick №</s>⟧\n",
    ),
    "Mixtral": Family(
        ("mixtral-8x7b-instruct-full-2k", "mixtral-8x7b-instruct-lora-2k"),
        "mixtral", {**EXPERTS, "sliding_window": None},
        template=by_role(BOS, user="' [INST] ' + text + ' [/INST]'", assistant="' ' + text + eos_token"),
        sentencepiece=True, adds_bos=True, system=False,
        chat="<s>  [INST] 上海 №? [/INST]⟦ A city.</s>⟧ [INST] and № the fox [/INST]⟦ quick №</s>⟧",
        turbomind="workspace", said=False,
    ),
    "DeepSeek LLM": Family(
        ("deepseek-llm-7b-chat-full-2k", "deepseek-llm-7b-chat-lora-2k"),
        "llama",
        template=by_role(
            BOS, system="text + '\\n\\n'", user="'User: ' + text + '\\n\\n'",
            assistant="'Assistant: ' + text + eos_token", prompt="'Assistant:'",
        ),
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>", adds_bos=True, chat=DEEPSEEK_CHAT, turbomind="workspace", said=False,
    ),
    "DeepSeek Coder": Family(
        ("deepseek-coder-6.7b-instruct-full-2k", "deepseek-coder-6.7b-instruct-qlora-2k"),
        "llama",
        template=by_role(
            BOS, system="text", user="'### Instruction:\\n' + text + '\\n'",
            assistant="'### Response:\\n' + text + '\\n<|EOT|>\\n'", prompt="'### Response:\\n'",
        ),
        special=("<｜begin▁of▁sentence｜>", "<|EOT|>"), bos="<｜begin▁of▁sentence｜>", eos="<|EOT|>", adds_bos=True,
        chat="<｜begin▁of▁sentence｜>Be brief.### Instruction:\n上海 №?\n### Response:\n⟦A city.\n<|EOT|>⟧\n"
        "### Instruction:\nand № the fox\n### Response:\n⟦quick №\n<|EOT|>⟧\n",
    ),
    "DeepSeek R1 Distill": Family(
        ("deepseek-r1-distill-qwen-7b-full-32k", "deepseek-r1-distill-qwen-7b-lora-2k"),
        "qwen2",
        template=by_role(
            BOS, system="text", user="'<｜User｜>' + text",
            assistant="'<｜Assistant｜>' + text.split('</think>')[-1] + eos_token",
            prompt="'<｜Assistant｜><think>\\n'",
        ),
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>"),
        bos="<｜begin▁of▁sentence｜>", eos="<｜end▁of▁sentence｜>", adds_bos=True,
        chat="<｜begin▁of▁sentence｜>Be brief.<｜User｜>上海 №?<｜Assistant｜>⟦A city.<｜end▁of▁sentence｜>⟧"
        "<｜User｜>and № the fox<｜Assistant｜>⟦quick №<｜end▁of▁sentence｜>⟧",
    ),
    "DeepSeek V2": Family(
        ("deepseek-v2-lite-chat-full-2k",),
        "deepseek_v2", {**EXPERTS, **MLA},
        template=by_role(
            BOS, system="text + '\\n\\n'", user="'User: ' + text + '\\n\\n'",
            assistant="'Assistant: ' + text + eos_token", prompt="'Assistant:'",
        ),
        special=("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"), bos="<｜begin▁of▁sentence｜>",
        eos="<｜end▁of▁sentence｜>", adds_bos=True, chat=DEEPSEEK_CHAT,
    ),
    "Yi": Family(
        ("yi-6b-full-2k", "yi-6b-qlora-2k", "yi-6b-pretrain-2k"),
        "llama", sentencepiece=True, prefix=False, chat=DEFAULT_CHAT, turbomind="workspace", said=False,
    ),
    "Yi chat": Family(
        ("yi-1.5-9b-chat-lora-2k",),
        "llama",
        template=by_role(
            system="text", user="'<|im_start|>user\\n' + text + '<|im_end|>\\n<|im_start|>assistant\\n'",
            assistant="text + '<|im_end|>\\n'",
        ),
        special=IM, eos="<|im_end|>", sentencepiece=True, prefix=False,
        chat="Be brief.<|im_start|>user\n上海 №?<|im_end|>\n<|im_start|>assistant\n⟦A city.<|im_end|>⟧\n"
        "<|im_start|>user\nand № the fox<|im_end|>\n<|im_start|>assistant\n⟦quick №<|im_end|>⟧\n",
    ),
    "Gemma 2": Family(
        ("gemma2-2b-it-full-2k", "gemma2-9b-it-lora-2k", "gemma2-9b-it-qlora-2k"),
        "gemma2", {**WINDOWS, "tie_word_embeddings": True, "query_pre_attn_scalar": 64},
        template=GEMMA, special=GEMMA_TOKENS, bos="<bos>", eos="<eos>", sentencepiece=True, prefix=False, adds_bos=True,
        system=False, chat=GEMMA_CHAT,
    ),
    "Gemma 3": Family(
        ("gemma3-1b-it-full-32k",),
        "gemma3_text", {**WINDOWS, "tie_word_embeddings": True, "query_pre_attn_scalar": 64},
        template=GEMMA, special=GEMMA_TOKENS, bos="<bos>", eos="<eos>", sentencepiece=True, prefix=False, adds_bos=True,
        system=False, chat=GEMMA_CHAT,
    ),
    "StarCoder2": Family(
        ("starcoder2-3b-pretrain-2k", "starcoder2-7b-full-2k", "starcoder2-7b-qlora-2k"),
        "starcoder2", {"sliding_window": 24, "tie_word_embeddings": True},
        special=("<|endoftext|>",), bos="<|endoftext|>", eos="<|endoftext|>",
        chat=DEFAULT_CHAT.replace("<s>", "<|endoftext|>").replace("</s>", "<|endoftext|>"),
    ),
    "GLM 4": Family(
        ("glm4-9b-full-2k", "glm4-9b-lora-2k"),
        "glm4", {"attention_bias": True},
        template=by_role(
            "[gMASK]<sop>", system="'<|system|>\\n' + text", user="'<|user|>\\n' + text",
            assistant="'<|assistant|>\\n' + text", prompt="'<|assistant|>'",
        ),
        special=("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>"), bos=None,
        eos="<|endoftext|>",
        chat="[gMASK]<sop><|system|>\nBe brief.<|user|>\n上海 №?<|assistant|>\n⟦A city.<|endoftext|>⟧"
        "<|user|>\nand № the fox<|assistant|>\n⟦quick №<|endoftext|>⟧",
    ),
    "Phi 3": Family(
        ("phi3-mini-4k-full-2k", "phi3-mini-4k-lora-2k"),
        "phi3", {"sliding_window": 24},
        template=by_role(
            system="'<|system|>\\n' + text + '<|end|>\\n'", user="'<|user|>\\n' + text + '<|end|>\\n'",
            assistant="'<|assistant|>\\n' + text + '<|end|>\\n'", prompt="'<|assistant|>\\n'",
            end="{%- if not add_generation_prompt -%}{{- eos_token -}}{%- endif -%}",
        ),
        special=("<unk>", "<s>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"),
        eos="<|endoftext|>", sentencepiece=True,
        chat="<|system|>\nBe brief.<|end|>\n<|user|>\n上海 №?<|end|>\n<|assistant|>\n⟦A city.<|end|>⟧\n"
        "<|user|>\nand № the fox<|end|>\n<|assistant|>\n⟦quick №<|end|>⟧\n<|endoftext|>",
    ),
    "Phi 4": Family(
        ("phi4-lora-2k", "phi4-qlora-2k"),
        "phi3", {"sliding_window": None},
        template=by_role(
            system="'<|im_start|>system<|im_sep|>' + text + '<|im_end|>'",
            user="'<|im_start|>user<|im_sep|>' + text + '<|im_end|>'",
            assistant="'<|im_start|>assistant<|im_sep|>' + text + '<|im_end|>'",
            prompt="'<|im_start|>assistant<|im_sep|>'",
        ),
        special=("<|endoftext|>", "<|im_start|>", "<|im_sep|>", "<|im_end|>"), bos="<|endoftext|>", eos="<|im_end|>",
        chat="<|im_start|>system<|im_sep|>Be brief.<|im_end|><|im_start|>user<|im_sep|>上海 №?<|im_end|>"
        "<|im_start|>assistant<|im_sep|>⟦A city.<|im_end|>⟧<|im_start|>user<|im_sep|>and № the fox<|im_end|>"
        "<|im_start|>assistant<|im_sep|>⟦quick №<|im_end|>⟧",
    ),
    "GPT-OSS": Family(
        ("gpt-oss-20b-full-2k",),
        "gpt_oss", {**WINDOWS, "num_local_experts": 4, "num_experts_per_tok": 2},
        template=HARMONY,
        special=("<|startoftext|>", "<|return|>", "<|start|>", "<|message|>", "<|end|>", "<|channel|>"),
        bos="<|startoftext|>", eos="<|return|>",
        chat="<|start|>developer<|message|>Be brief.<|end|><|start|>user<|message|>上海 №?<|end|>"
        "<|start|>assistant<|channel|>final<|message|>A city.<|end|><|start|>user<|message|>and № the fox<|end|>"
        "<|start|>assistant⟦<|channel|>final<|message|>quick №<|return|>⟧",
        turbomind="hf_direct",
    ),
}  # fmt: skip


def write_model(family: Family, folder: Path) -> None:
    """The family's model directory: config.json, random weights of float32, and the tokenizer."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    write_tokenizer(family, folder)
    torch.manual_seed(5)
    ids = {"bos_token_id": None if family.bos is None else family.special.index(family.bos), "pad_token_id": None}
    keys = {**DENSE, **ids, "eos_token_id": family.special.index(family.eos), **family.keys}
    if family.model_type in ("internlm2", "baichuan"):
        write_original_layout(family.model_type, keys, folder)
        return
    known = AutoConfig.for_model(family.model_type).to_dict()
    chosen = {key: value for key, value in keys.items() if key in known or key in family.keys}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(family.model_type, **chosen), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.02)  # so that nothing is constant
    model.save_pretrained(folder)


def write_original_layout(model_type: str, keys: Mapping[str, Any], folder: Path) -> None:
    """Weights under the names, and in the files, that InternLM2 and Baichuan 2 are published in."""
    import torch
    from safetensors.torch import save_file

    from tests.train.test_original_weights import original_shapes

    own = {
        "internlm2": {
            "architectures": ["InternLM2ForCausalLM"],
            "bias": False,
            "rope_theta": 1e6,
            "rope_scaling": {"type": "dynamic", "factor": 2.0},
        }
    }
    config = {**keys, **ORIGINAL, **own.get(model_type, {"architectures": ["BaichuanForCausalLM"]})}
    config |= {"model_type": model_type}
    if model_type == "baichuan":
        del config["num_key_value_heads"]
    shapes = original_shapes(config)
    tensors = {name: torch.randn(shape) * 0.05 + ("norm" in name) for name, shape in shapes.items()}
    (folder / "config.json").write_text(json.dumps(config))
    if model_type == "baichuan":
        torch.save(tensors, folder / "pytorch_model.bin")
    else:
        save_file(tensors, folder / "model.safetensors")


def write_tokenizer(family: Family, folder: Path) -> None:
    """A tokenizer of the family's kind, with its special tokens and its template."""
    config: dict[str, Any] = {"bos_token": family.bos, "eos_token": family.eos, "add_bos_token": family.adds_bos}
    if family.model_type == "phi3":
        config["legacy"] = False
    if family.template:
        config["chat_template"] = family.template
    if family.sentencepiece:
        names = dict(zip(("unk", "bos", "eos"), ("<unk>", *family.special[1:3]), strict=True))
        pieces = {f"{key}_piece": text for key, text in names.items()}
        spm(folder, special=family.special, config=config, add_dummy_prefix=family.prefix, **pieces)
    else:
        byte_level(folder, special=family.special, config=config)
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        if family.adds_bos and family.bos is not None:
            special = [(family.bos, family.special.index(family.bos))]
            tokenizer.post_processor = processors.TemplateProcessing(single=f"{family.bos} $A", special_tokens=special)
        if family.model_type == "qwen2":  # which Transformers splits in this way, whatever tokenizer.json says
            tokenizer.normalizer = normalizers.NFC()
            split = pre_tokenizers.Split(Regex(QWEN_WORDS), "isolated")
            tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, pre_tokenizers.ByteLevel(False, use_regex=False)])
        tokenizer.save(str(folder / "tokenizer.json"))
