# mypy: ignore-errors
"""Steps of Hugging Face's Trainer or TRL's SFTTrainer on made-up samples, as JSON.

python training.py (trainer|sft) CONFIG.json TOKENIZER LENGTHS.npy CAPACITY FOLDER

The Trainer pads batches of 16 to their longest sample; SFTTrainer packs by its best-fit-decreasing strategy.
"""

import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset, disable_progress_bars
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    DataCollatorForSeq2Seq,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

WARM_UP = 1


class Clock(TrainerCallback):
    """Processor seconds and tokens of the steps after the first."""

    def __init__(self):
        self.began = self.seconds = 0.0
        self.tokens = 0

    def on_step_end(self, _args, state, _control, **_kwargs):
        if state.global_step == WARM_UP:
            self.began, self.tokens = time.process_time(), 0
        self.seconds = time.process_time() - self.began


def main():
    kind, config, tokenizer, lengths, capacity, folder = sys.argv[1:]
    lengths = np.load(lengths)
    disable_progress_bars()
    torch.set_num_threads(1)
    keys = json.loads(Path(config).read_text())
    model = AutoModelForCausalLM.from_config(
        AutoConfig.for_model(keys.pop("model_type"), **keys), dtype=torch.float32, attn_implementation="sdpa"
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=tokenizer, pad_token="<|pad|>", eos_token="<|eos|>")
    random = np.random.default_rng(0)
    rows = [random.integers(0, keys["vocab_size"], length).tolist() for length in lengths]
    clock = Clock()
    settings = {
        "output_dir": folder,
        "learning_rate": 1e-4,
        "report_to": [],
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "dataloader_pin_memory": False,
    }
    if kind == "trainer":
        trainer = padding(model, tokenizer, rows, settings, clock)
    else:
        trainer = packing(model, tokenizer, rows, settings, clock, int(capacity))
    collate = trainer.data_collator

    def counted(examples):
        batch = collate(examples)
        clock.tokens += int((batch["labels"] != -100).sum())
        return batch

    trainer.data_collator = counted
    trainer.train()
    print(json.dumps({"seconds": clock.seconds, "tokens": clock.tokens}))


def padding(model, tokenizer, rows, settings, clock):
    arguments = TrainingArguments(**settings, per_device_train_batch_size=16, max_steps=WARM_UP + 6)
    data = Dataset.from_dict({"input_ids": rows, "labels": rows, "attention_mask": [[1] * len(row) for row in rows]})
    collator = DataCollatorForSeq2Seq(tokenizer)
    return Trainer(model=model, args=arguments, train_dataset=data, data_collator=collator, callbacks=[clock])


def packing(model, tokenizer, rows, settings, clock, capacity):
    from trl import SFTConfig, SFTTrainer

    arguments = SFTConfig(
        **settings, packing=True, max_length=capacity, per_device_train_batch_size=1, max_steps=WARM_UP + 3
    )
    return SFTTrainer(
        model=model,
        args=arguments,
        train_dataset=Dataset.from_dict({"input_ids": rows}),
        processing_class=tokenizer,
        callbacks=[clock],
    )


if __name__ == "__main__":
    main()
