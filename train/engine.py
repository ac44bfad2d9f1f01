"""The DeepSpeed engine: its configuration, and one optimizer step."""

import copy
import logging
import math
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.utils import clip_grad_norm_

from pipelines.errors import ConfigError
from pipelines.schema import Pipeline, Train
from train.batches import MicroBatch, StepBatch
from train.chunked_loss import ChunkedHead
from train.filling import DTYPES, fill
from train.flops import Work
from train.initial import Initial
from train.layers import arrange_layers
from train.loss import chosen_logits, computes_chosen_logits, loss_sum
from train.optimizers import make_optimizer, parameter_groups
from train.sequence_parallel import SequenceParallelAttention
from train.sources import means
from train.tiled_mlp import check_rows

log = logging.getLogger(__name__)

Precision = Literal["bf16", "fp16", "fp32"]
BUCKET_ELEMENTS = 200_000_000
"""Most gradient elements that are reduced in one go."""

SCALER_STATE = ("cur_scale", "cur_iter", "last_overflow_iter", "cur_hysteresis")


@dataclass(frozen=True)
class StepStats:
    """What one optimizer step found."""

    loss: float
    """Mean over the targets of the global batch, before the update."""
    grad_norm: float
    """Before clipping."""
    skipped: bool
    """A gradient was not finite, and weights and optimizer stayed as they were on every rank."""
    overflow: bool = False
    """fp16 only: it was skipped because of the loss scale, which is lower now."""
    loss_by_source: Mapping[str, float] = field(default_factory=dict)
    """`loss` of each source that has a target in the global batch; empty where that is not asked for."""

    @property
    def finite(self) -> bool:
        """Whether the model's loss and gradient are numbers, whatever a loss scale made of them."""
        return math.isfinite(self.loss) and (self.overflow or not self.skipped)


class Engine:
    """A model under DeepSpeed, with what one training step of ours needs around it."""

    def __init__(
        self,
        model: nn.Module,
        train: Train,
        pipeline: Pipeline,
        attention: SequenceParallelAttention,
        initial: Initial | None = None,
    ) -> None:
        """Take over a model.

        Args:
            initial: the weights of a model that does not have them yet; what is trained in another format than float32
                still has to be set by `fragments.set_masters`.
        """
        self.attention = attention
        self.parallel = attention.parallel
        self.precision = choose_precision(train.precision)
        if train.loss_scale != "dynamic" and self.precision != "fp16":
            raise ConfigError(
                f'{pipeline.cite("train.loss_scale")}: is for fp16, and precision = "auto" is {self.precision} here; '
                "remove it"
            )
        self._scales = self.precision == "fp16" and train.loss_scale == "dynamic"
        """Whether there is a loss scale that changes."""
        self.zero_stage = train.deepspeed.zero_stage
        self.ranks = dist.get_world_size()
        self.accumulation = -(-train.global_batch_size // self.parallel.data.size)
        if self.zero_stage < 2 and self.precision != "fp32":
            # DeepSpeed's ZeRO 0 would add up micro-batches in half precision, and its ZeRO 1 (0.19.8) reduces only the
            # last of them over the ranks. ZeRO 2 computes the same, of every micro-batch, in float32.
            log.info(
                "zero_stage = %d with %s runs as ZeRO 2, which adds up in float32", self.zero_stage, self.precision
            )
            self.zero_stage = 2
        # Without ZeRO, DeepSpeed clips but does not say the norm, so it is done here.
        self._clip_here = self.zero_stage == 0
        self._max_grad_norm = train.max_grad_norm
        tiled = arrange_layers(model, pipeline, attention, zero_stage=self.zero_stage)
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.work = Work.of(model)
        """What a step costs, where that is known."""
        self._keeps_logits = computes_chosen_logits(model)
        self._head = _chunked_head(model) if train.fused_loss else None
        config = self._config(train, pipeline)
        groups = parameter_groups(model, train.optimizer)
        optimizer = make_optimizer(groups, train.optimizer, pipeline, zero_stage=self.zero_stage)
        try:
            self.deepspeed = _initialize(model, config, optimizer, initial, DTYPES[self.precision])
        except (ValueError, AssertionError, NotImplementedError) as error:
            if not train.deepspeed.extra:
                raise
            finding = " ".join(str(error).split())
            raise ConfigError(f"{pipeline.cite('train.deepspeed.extra')}: DeepSpeed refuses it: {finding}") from error
        check_rows(model, tiled, pipeline)
        if self._scales:
            self.deepspeed.optimizer.loss_scaler.raise_error_at_min_scale = False  # such steps are told of by StepStats
        self.device = self.deepspeed.device
        self.skipped_steps = 0
        """Of the whole run, also before it was resumed."""

    @property
    def model(self) -> nn.Module:
        module: nn.Module = self.deepspeed.module
        return module

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The optimizer below DeepSpeed's, with the groups and state that are really stepped."""
        inner: torch.optim.Optimizer = self.deepspeed.basic_optimizer
        return inner

    def step(self, batch: StepBatch, learning_rate: float) -> StepStats:
        """Forward, backward and update over one global batch."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.model.train()
        # DeepSpeed divides by accumulation and ranks, also those that share a pack; this makes the result the mean over
        # the global batch's targets.
        scale = self.ranks * self.accumulation / max(1, batch.loss_tokens)
        total = torch.zeros((), device=self.device)
        by_source = torch.zeros(len(batch.targets_by_source), dtype=torch.float64, device=self.device)
        norm = None
        for micro in batch.micro_batches:
            torch.manual_seed(micro.seed)
            with self.attention.over(micro.segments):
                loss = self._loss_sum(micro, by_source)
                self.deepspeed.backward(loss * scale)
            total += loss.detach()
            if self._clip_here and self.deepspeed.is_gradient_accumulation_boundary():
                norm = clip_grad_norm_(self.model.parameters(), self._max_grad_norm or float("inf"))
                if not norm.isfinite():
                    self.model.zero_grad(set_to_none=True)  # which is what optimizers pass over
            self.deepspeed.step()
        found = torch.cat([total[None], by_source.float()])
        if self.ranks > 1:
            dist.all_reduce(found)
        grad_norm = float(self.deepspeed.get_global_grad_norm() if norm is None else norm)
        skipped = not self.deepspeed.was_step_applied() or (norm is not None and not math.isfinite(grad_norm))
        self.skipped_steps += skipped
        loss_total, *source_totals = found.tolist()
        return StepStats(
            loss=loss_total / max(1, batch.loss_tokens),
            grad_norm=grad_norm,
            skipped=skipped,
            overflow=skipped and self._scales and self.deepspeed.optimizer.loss_scaler.cur_scale > 1,
            loss_by_source=means(source_totals, batch.targets_by_source),
        )

    @torch.no_grad()
    def held_out_loss(self, micro: MicroBatch, by_source: torch.Tensor) -> torch.Tensor:
        """Loss summed over a micro-batch's targets on this rank, float32[], without training on it.

        Args:
            by_source: float64[sources], to which the losses of each source are added.
        """
        self.model.eval()
        with self.attention.over(micro.segments):
            return self._loss_sum(micro, by_source)

    def _loss_sum(self, micro: MicroBatch, by_source: torch.Tensor) -> torch.Tensor:
        each = None if micro.sources is None else torch.empty(micro.targets.numel(), device=self.device)
        loss = loss_sum(self.deepspeed, micro, keeps_logits=self._keeps_logits, head=self._head, each=each)
        if micro.sources is not None and each is not None:
            by_source.index_add_(0, micro.sources, each.double())
        return loss

    @torch.no_grad()
    def logits(self, micro: MicroBatch) -> torch.Tensor:
        """What a micro-batch's predictors say of their next tokens, [predictors, vocabulary], without training."""
        self.model.eval()
        with self.attention.over(micro.segments):
            return chosen_logits(self.deepspeed, micro, keeps_logits=self._keeps_logits)

    def refresh_parameters(self) -> None:
        """Let the parameters that the model computes with follow the master weights, after those were loaded."""
        zero = self.deepspeed.optimizer
        if self.zero_stage in (1, 2):
            zero.update_lp_params()
        elif self.zero_stage == 3:
            zero._partition_all_parameters()
            for group in range(len(zero.fp16_groups)):
                zero._reassign_or_swap_out_partitioned_parameters(group)
            if zero.persistent_parameters:
                zero.persistent_parameters[0].all_gather(zero.persistent_parameters)

    def scaler(self) -> dict[str, float]:
        """State of the dynamic loss scaler; empty where there is none."""
        if not self._scales:
            return {}
        return {key: getattr(self.deepspeed.optimizer.loss_scaler, key) for key in SCALER_STATE}

    def load_scaler(self, state: Mapping[str, float]) -> None:
        """Continue with the loss scale of a checkpoint, if it was trained with one and this run is."""
        if self._scales:
            for key, value in state.items():
                setattr(self.deepspeed.optimizer.loss_scaler, key, value)

    def _config(self, train: Train, pipeline: Pipeline) -> dict[str, Any]:
        elements = min(BUCKET_ELEMENTS, self.parameters)
        zero: dict[str, Any] = {"stage": self.zero_stage}
        if self.zero_stage:
            zero["reduce_bucket_size"] = zero["allgather_bucket_size"] = elements
            zero["overlap_comm"] = train.deepspeed.overlap_comm
            zero["contiguous_gradients"] = train.deepspeed.contiguous_gradients
        pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
        if train.deepspeed.offload_optimizer == "cpu":
            zero["offload_optimizer"] = pinned
        if train.deepspeed.offload_param == "cpu":
            zero["offload_param"] = pinned
        if self.zero_stage == 3:
            zero["stage3_prefetch_bucket_size"] = elements
        ours: dict[str, Any] = {
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": self.accumulation,
            "gradient_clipping": 0.0 if self._clip_here else self._max_grad_norm,
            "zero_optimization": zero,
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,
            "steps_per_print": None,
            "data_types": {"grad_accum_dtype": "fp32"},
            "bf16": {"enabled": self.precision == "bf16"},
            "fp16": {"enabled": self.precision == "fp16", "loss_scale": _static(train.loss_scale)},
        }
        tuning = {"reduce_bucket_size", "allgather_bucket_size", "stage3_prefetch_bucket_size", "steps_per_print"}
        return _merged(ours, train.deepspeed.extra, pipeline, ("train", "deepspeed", "extra"), tuning)


def _static(scale: float | Literal["dynamic"]) -> float:
    return 0.0 if scale == "dynamic" else scale  # which is how DeepSpeed spells it


def choose_precision(asked: Literal["auto", "bf16", "fp16", "fp32"]) -> Precision:
    """The number format of forward and backward: bf16 on a GPU that has it, else fp16; fp32 on a CPU."""
    if asked != "auto":
        return asked
    if not torch.cuda.is_available():
        return "fp32"
    return "bf16" if torch.cuda.is_bf16_supported() else "fp16"


def _chunked_head(model: nn.Module) -> ChunkedHead | None:
    try:
        return ChunkedHead(model)
    except ValueError as finding:
        log.info("the logits of all targets of a pack are in memory at once: %s", finding)
        return None


def _initialize(
    model: nn.Module,
    config: dict[str, Any],
    optimizer: torch.optim.Optimizer,
    initial: Initial | None,
    dtype: torch.dtype,
) -> Any:
    import deepspeed
    from deepspeed.accelerator import get_accelerator

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if initial is not None:
            zero_3 = config["zero_optimization"]["stage"] == 3
            # Of an empty module: it is told of parameters as they are filled.
            zero_init = deepspeed.zero.Init(nn.Module(), config_dict_or_path=copy.deepcopy(config)) if zero_3 else None
            device = torch.device(get_accelerator().current_device_name())
            fill(model, initial, dtype, device=device, zero_init=zero_init)
        engine, _, _, _ = deepspeed.initialize(model=model, optimizer=optimizer, config=config)
    return engine


def _merged(
    ours: dict[str, Any], extra: dict[str, Any], pipeline: Pipeline, path: tuple[str, ...], free: set[str]
) -> dict[str, Any]:
    """Our DeepSpeed configuration with the user's keys on top, which may replace only what is `free`."""
    result = dict(ours)
    for key, value in extra.items():
        if isinstance(value, dict) and isinstance(ours.get(key), dict):
            result[key] = _merged(ours[key], value, pipeline, (*path, key), free)
        elif key in ours and key not in free:
            raise ConfigError(
                f"{pipeline.cite('train.deepspeed.extra')}: {'.'.join((*path[3:], key))}: packtrain sets it; remove it"
            )
        else:
            result[key] = value
    return result
