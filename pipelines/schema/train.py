"""[train]: shards into checkpoints."""

from collections.abc import Mapping
from datetime import timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipelines.schema.values import (
    Beta,
    LocalPath,
    NonNegativeReal,
    PositiveReal,
    PythonMap,
    Share,
    Table,
    Verbatim,
    Whole,
    fault,
    pair,
    real,
)


class Optimizer(Table):
    """[train.optimizer]: how gradients change the weights."""

    type: (
        Literal[
            "adamw",
            "adam",
            "adamax",
            "nadam",
            "radam",
            "sgd",
            "rmsprop",
            "adagrad",
            "adadelta",
            "asgd",
            "rprop",
            "adafactor",
            "muon",
            "lion",
            "adamw_8bit",
            "paged_adamw_8bit",
            "paged_adamw_32bit",
            "lion_8bit",
            "paged_lion_8bit",
            "paged_lion_32bit",
        ]
        | PythonMap
    ) = "adamw"
    """An optimizer of PyTorch by name, lion, muon (hidden matrices by Muon, the rest by AdamW, on any ZeRO stage), one
    of bitsandbytes (8bit, paged), or `python:module:Class`. One that does not go by element is refused where ZeRO would
    cut its matrices; state of 8 bits resumes only on the number of ranks and ZeRO stage that wrote it."""
    options: Verbatim = {}
    """Further settings of that optimizer, such as `{ momentum = 0.9 }` of sgd; those not given are its own."""
    lr: PositiveReal = Field(examples=[Decimal("2e-5")])
    """Peak learning rate."""
    betas: Annotated[tuple[Beta, Beta], BeforeValidator(pair)] = (0.9, 0.95)
    """How much of the running means of gradient and squared gradient stays at each step, in the Adam family; of Lion's
    mean in its step and after it, by default 0.9 and 0.99."""
    eps: PositiveReal = 1e-8
    """Added to the root of the squared gradients' mean, in the Adam family; others have a default of their own."""
    weight_decay: NonNegativeReal = 0.0
    """Share of a decayed parameter taken off at each step, times the learning rate."""
    no_decay: list[str] = ["bias", "norm"]
    """Parameters whose name contains one of these are not decayed."""

    @model_validator(mode="before")
    @classmethod
    def _lions_betas(cls, table: Any) -> Any:
        is_lion = isinstance(table, dict) and "lion" in str(table.get("type")).split(":")[0]
        return {"betas": (0.9, 0.99), **table} if is_lion else table


class Scheduler(Table):
    """[train.scheduler]: linear warm-up into one of the usual shapes."""

    type: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    """Shape after the warm-up: from the peak to min_lr, constant at the peak, or constant with a line to min_lr at the
    end (wsd)."""
    warmup_ratio: Share = 0.03
    """Share of all steps spent warming up; not together with warmup_steps."""
    warmup_steps: NonNegativeInt | None = None
    """Steps spent warming up."""
    warmup_start_factor: Share = 1e-5
    """Learning rate of the first step over the peak."""
    min_lr: NonNegativeReal = 0.0
    """Learning rate of the last step."""
    decay_ratio: Annotated[float, Field(gt=0, le=1), BeforeValidator(real)] = 0.1
    """With type = "wsd": share of the steps after the warm-up in which the rate falls."""
    interval: Literal["step", "epoch"] = "step"
    """epoch: after the warm-up the rate changes only where an epoch begins."""

    @model_validator(mode="after")
    def _one_warmup(self) -> Self:
        if self.warmup_steps is not None and "warmup_ratio" in self.model_fields_set:
            raise fault("warmup_ratio is given as well; keep one", "warmup_steps")
        return self

    @model_validator(mode="after")
    def _no_key_without_effect(self) -> Self:
        if self.type != "wsd" and self.decay_ratio != Scheduler.model_fields["decay_ratio"].default:
            raise fault(f'is for type = "wsd", not "{self.type}"; remove it', "decay_ratio")
        if self.type == "constant":
            for key in ("min_lr", "interval"):
                if getattr(self, key) != Scheduler.model_fields[key].default:
                    raise fault('has no effect with type = "constant"; remove it', key)
        return self


class Deepspeed(Table):
    """[train.deepspeed]: how DeepSpeed shards the training state."""

    zero_stage: Annotated[Literal[0, 1, 2, 3], Whole] = 0
    """What is sharded over ranks: 1 optimizer state, 2 gradients as well, 3 parameters as well. In half precision 2 is
    the least."""
    preset: (
        Literal[
            "deepspeed_zero1",
            "deepspeed_zero2",
            "deepspeed_zero2_offload",
            "deepspeed_zero3",
            "deepspeed_zero3_offload",
        ]
        | None
    ) = None
    """zero_stage and both offloads by XTuner's name for them; a key that stands beside it wins."""
    offload_optimizer: Literal["none", "cpu"] = "none"
    """Where optimizer state and float32 weights are kept and stepped; cpu needs a zero_stage above 0. Never changes the
    loss."""
    offload_param: Literal["none", "cpu"] = "none"
    """Where parameters wait until they are needed; cpu needs zero_stage = 3. Never changes the loss."""
    overlap_comm: bool = True
    """Reduce gradients while the backward pass goes on, for one more bucket of memory."""
    contiguous_gradients: bool = True
    """Copy gradients into one buffer as they come, so that memory does not fragment."""
    extra: Verbatim = {}
    """Any other DeepSpeed key, verbatim; keys that this file owns are refused. Those that may change numbers are part
    of the run, as its settings are."""

    @model_validator(mode="before")
    @classmethod
    def _preset_fills_gaps(cls, table: Any) -> Any:
        preset = table.get("preset") if isinstance(table, dict) else None
        return {**_PRESETS.get(preset, {}), **table} if isinstance(preset, str) else table

    @model_validator(mode="after")
    def _offload_is_possible(self) -> Self:
        if self.offload_optimizer != "none" and self.zero_stage == 0:
            raise fault("needs a zero_stage of 1, 2 or 3", "offload_optimizer")
        if self.offload_param != "none" and self.zero_stage != 3:
            raise fault("needs zero_stage = 3", "offload_param")
        return self

    @model_validator(mode="after")
    def _extra_overrides_nothing(self) -> Self:
        for key, ours in _OWNED_BY_US.items():
            if key in self.extra:
                raise fault(f"this file sets it by {ours}; remove it here", "extra", key)
        zero = self.extra.get("zero_optimization")
        if isinstance(zero, dict) and "stage" in zero:
            path = ("extra", "zero_optimization", "stage")
            raise fault("this file sets it by train.deepspeed.zero_stage; remove it here", *path)
        return self


_PRESETS: Mapping[str, Mapping[str, Any]] = {
    "deepspeed_zero1": {"zero_stage": 1},
    "deepspeed_zero2": {"zero_stage": 2},
    "deepspeed_zero2_offload": {"zero_stage": 2, "offload_optimizer": "cpu"},
    "deepspeed_zero3": {"zero_stage": 3},
    "deepspeed_zero3_offload": {"zero_stage": 3, "offload_optimizer": "cpu", "offload_param": "cpu"},
}

_OWNED_BY_US: Mapping[str, str] = {
    "train_batch_size": "train.global_batch_size",
    "train_micro_batch_size_per_gpu": "train.global_batch_size",
    "gradient_accumulation_steps": "train.global_batch_size",
    "gradient_clipping": "train.max_grad_norm",
    "optimizer": "[train.optimizer]",
    "scheduler": "[train.scheduler]",
    "bf16": "train.precision",
    "fp16": "train.precision",
    "amp": "train.precision",
    "sequence_parallel_size": "train.parallel.sequence_parallel_size",
}


class Parallel(Table):
    """[train.parallel]: how one pack is shared out."""

    sequence_parallel_size: PositiveInt = 1
    """Ranks that share each pack, every one of them with a part of its tokens; has to divide the number of ranks.
    Never changes the loss, except that dropout draws other elements."""


class CheckpointTable(Table):
    """[train.checkpoint]: when the training state is saved."""

    save_steps: NonNegativeInt = 500
    """Optimizer steps between checkpoints; 0 saves only the last."""
    save_total_limit: Annotated[Literal[-1] | PositiveInt, Whole] = 2
    """Newest checkpoints kept; -1 keeps all."""
    save_epochs: NonNegativeInt = 0
    """Epochs between checkpoints, each after the step that completes one; 0 leaves it to save_steps, which goes on
    beside it."""
    save_optimizer: bool = True
    """false: checkpoints hold the weights alone, a third of the size. They can be exported and be another run's
    train.load_from, but no run resumes from them."""


def _directory(value: object) -> object:
    if isinstance(value, str) and "/" not in value:  # it may be a misspelt "auto"
        raise ValueError("expected a checkpoint directory with a slash in it, such as ./step-00000500")
    return value


class TrainLog(Table):
    """[train.log]: what is shown while training."""

    steps: PositiveInt = 10
    """Optimizer steps between lines on the terminal; metrics.jsonl has every step."""
    show_samples: NonNegativeInt = 1
    """Packs that are shown as text before the first step, the first ones of the order trained in, with what carries
    loss marked and where each sample came from; 0 shows none."""
    trackers: list[Literal["tensorboard", "wandb", "swanlab", "mlflow", "trackio"]] = []
    """Where the numbers of metrics.jsonl are drawn as well. Each is a package of its own, goes by its own environment
    variables, and keeps files in this run's train directory (trackio in its usual place) where those name no server."""
    per_source_loss: bool = True
    """Also report the mean loss over the targets of each [[prep.source]], as loss_by_source in metrics.jsonl."""


class TrainProfile(Table):
    """[train.profile]: a few optimizer steps, watched by PyTorch's profiler on rank 0."""

    first_step: PositiveInt = 3
    """The first step that is watched, counted from 1; the very first ones warm up."""
    steps: PositiveInt = 2
    """How many. Their trace goes to train/profile, for chrome://tracing or ui.perfetto.dev, and the operators that took
    most time are logged. The steps are slower, and their numbers the same."""
    memory: bool = False
    """Also write what is allocated on the GPU, and where it was, for pytorch.org/memory_viz."""


class TrainEval(Table):
    """[train.eval]: what is measured between steps."""

    steps: PositiveInt = 500
    """Optimizer steps between evaluations: the loss on the samples that prep.eval.fraction holds out, if there are any,
    and the answers to `prompts`. One more follows the last step, and prompts are also answered before the first. Never
    changes the training."""
    prompts: list[Annotated[str, Field(min_length=1)]] = []
    """Texts that the model answers, each the user's message of a conversation of its own in the template trained with,
    or what plain text goes on from. The most likely token is taken each time."""
    system: str = ""
    """System message of those conversations; empty: the template's own."""
    max_new_tokens: PositiveInt = 128
    """Tokens of an answer at most. Each costs a forward pass, which serves all prompts."""

    @model_validator(mode="after")
    def _no_key_without_prompts(self) -> Self:
        for key in ("system", "max_new_tokens"):
            if not self.prompts and getattr(self, key) != TrainEval.model_fields[key].default:
                raise fault("has no effect without prompts; add some, or remove it", key)
        return self


EXPORTED = ("NCCL_", "GLOO_", "TORCH_", "PYTORCH_", "CUDA_", "OMP_")
"""How the names of the variables begin that the libraries of a rank read."""


def _variables(value: dict[str, Any]) -> dict[str, Any]:
    for name, text in value.items():
        if not name.startswith(EXPORTED):
            raise fault(f"expected a name that begins with one of {', '.join(EXPORTED)}", name)
        if not isinstance(text, str) or "\0" in text:
            raise fault("expected text in quotes", name)
    return value


class Runtime(Table):
    """[train.runtime]: how ranks run and talk to each other."""

    backend: Literal["auto", "nccl", "gloo"] = "auto"
    """How ranks exchange: nccl between GPUs, gloo between CPUs; auto: what fits the device."""
    timeout_minutes: Annotated[float, Field(gt=0, le=10_080), BeforeValidator(real)] = 30.0
    """How long a rank waits for the others, at the start and in each exchange, before the run ends and names those that
    did not come."""
    deterministic: bool = False
    """Only kernels that give the same bits each time, where the default ones on a GPU may not; slower. An operation
    without one stops the run and is named."""
    env: Annotated[dict[str, Any], AfterValidator(_variables)] = {}
    """Environment variables of every rank, set before PyTorch is loaded, in place of those that stand there already.
    Names begin with NCCL_, GLOO_, TORCH_, PYTORCH_, CUDA_ or OMP_."""

    @property
    def timeout(self) -> timedelta:
        return timedelta(minutes=self.timeout_minutes)


class Train(Table):
    """[train]: packed shards into checkpoints."""

    global_batch_size: PositiveInt = Field(examples=[64])
    """Packs per optimizer step, on any number of ranks: the only batch size there is."""
    optimizer: Optimizer
    max_epochs: PositiveInt = 1
    """Passes over the packs."""
    max_steps: NonNegativeInt = 0
    """Optimizer steps; 0: from max_epochs."""
    shuffle: Literal["hash", "none", "xtuner", "internrepo", "internevo"] = "hash"
    """Order of the packs in each epoch. As samplers elsewhere draw it from run.seed: xtuner is XTuner's DefaultSampler
    and SequenceParallelSampler, the epoch rounded up to whole steps; internrepo its InternRepoSampler and internevo
    that of InternEvo, both rounded down."""
    shuffle_seed: NonNegativeInt | None = None
    """Seed of that order, where it is another than run.seed, as that of XTuner's and InternEvo's samplers can be."""
    precision: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    """Arithmetic of the forward and backward pass; auto: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""
    nproc_per_node: Literal["auto"] | PositiveInt = "auto"
    """Ranks to start on this machine where the launcher starts none; auto: one a GPU, or one on a CPU."""
    loss_scale: Literal["dynamic"] | PositiveReal = "dynamic"
    """fp16 only: what the loss is multiplied by, so that small gradients do not vanish; dynamic: from 65,536 down, in
    skipped steps, to what the gradients bear, and up again after 1,000 steps."""
    activation_checkpointing: Literal["none", "selective", "full"] = "none"
    """What of each layer is computed again in the backward pass: nothing; all but matrix products and attention; or
    all, from the layer's input."""
    activation_offload: Literal["none", "cpu"] = "none"
    """Where the layers' inputs wait for the backward pass; cpu needs activation_checkpointing = "full". Never changes
    the loss."""
    tiled_mlp: bool = False
    """Run each layer's MLP a stretch of tokens after the other, and again in the backward pass, so that its wide
    activations never exist for a whole pack. Never changes the loss, except that dropout in it draws other elements."""
    compile: bool = False
    """Compile the decoder layers with PyTorch's inductor: minutes at the first step, faster steps after it. Rounds
    otherwise where operations are fused."""
    fused_loss: bool = True
    """Compute the loss a stretch of targets after the other, so that the logits of a whole pack are never in memory.
    Never changes the loss."""
    max_grad_norm: NonNegativeReal = 1.0
    """Gradients are scaled down to this norm; 0 turns it off."""
    on_nonfinite: Literal["skip_step", "stop"] = "skip_step"
    """When a loss or gradient is no number: leave the weights as they are, count the step and go on (a few times in a
    row at most), or stop. The steps in which fp16 looks for its loss scale are always skipped."""
    error_if_nonfinite: bool = False
    """true is on_nonfinite = "stop" under the name that PyTorch gives it."""
    resume: Annotated[
        Literal["auto", "none"] | Annotated[LocalPath, BeforeValidator(_directory)], Field(union_mode="left_to_right")
    ] = "auto"
    """auto continues from the newest undamaged checkpoint of this very run; a checkpoint directory of this very run
    (the same model, data and settings) continues from that one, once, and removes the run's later ones."""
    load_from: LocalPath | None = None
    """A checkpoint directory of another run whose weights this one starts from, with a fresh optimizer, at step 0. For
    a Hugging Face directory, model.name_or_path is the key."""
    scheduler: Scheduler = Scheduler()
    parallel: Parallel = Parallel()
    deepspeed: Deepspeed = Deepspeed()
    checkpoint: CheckpointTable = CheckpointTable()
    eval: TrainEval | None = None
    log: TrainLog = TrainLog()
    profile: TrainProfile | None = None
    runtime: Runtime = Runtime()

    @model_validator(mode="after")
    def _activations_go_together(self) -> Self:
        if self.activation_offload != "none" and self.activation_checkpointing != "full":
            raise fault('needs activation_checkpointing = "full"', "activation_offload")
        if self.compile and self.activation_checkpointing == "selective":
            raise fault(
                'the compiler chooses itself what to keep; use activation_checkpointing = "none" or "full" with it',
                "compile",
            )
        return self

    @model_validator(mode="after")
    def _no_seed_without_shuffle(self) -> Self:
        if self.shuffle == "none" and self.shuffle_seed is not None:
            raise fault('has no effect with shuffle = "none"; remove it', "shuffle_seed")
        return self

    @model_validator(mode="after")
    def _only_fp16_is_scaled(self) -> Self:
        if self.loss_scale != "dynamic" and self.precision in ("bf16", "fp32"):
            raise fault(f'is for precision = "fp16", not "{self.precision}"; remove it', "loss_scale")
        return self
