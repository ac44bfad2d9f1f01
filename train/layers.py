"""How the decoder layers of a model are run in training: what they keep, in which stretches, compiled or not."""

from typing import Any

from pipelines.schema import Pipeline
from train.activations import decoder_layers, run_layers
from train.attention import PackedAttention
from train.compiled import layer_compiler
from train.tiled_mlp import TiledMlp, tile_mlps


def arrange_layers(model: Any, pipeline: Pipeline, attention: PackedAttention, *, zero_stage: int) -> list[TiledMlp]:
    """Let the model run its layers as [train] says, before DeepSpeed takes it.

    Returns:
        The MLPs that run in stretches; once DeepSpeed has the model, `check_rows` tries them.
    Raises:
        ConfigError: naming a model that cannot be run so.
        MachineError: if this machine cannot.
    """
    train = pipeline.train
    assert train is not None
    if train.activation_checkpointing == "none" and not train.compile and not train.tiled_mlp:
        return []
    # Below an adapter, too, every layer's input has a gradient: what computes again in the backward pass, and ZeRO 3
    # where it takes modules as a whole, are called by it.
    model.enable_input_require_grads()
    tiled = tile_mlps(model, pipeline) if train.tiled_mlp else []
    if train.activation_checkpointing != "none" or train.compile:
        run_layers(model, pipeline, prepare=layer_compiler(pipeline, attention, tiled) if train.compile else None)
    if zero_stage == 3:
        from deepspeed.utils import set_z3_leaf_module

        # Gathered as a whole: what is compiled is not interrupted for it, and stretches do not gather one by one.
        for module in decoder_layers(model) if train.compile else [one.mlp for one in tiled]:
            set_z3_leaf_module(module, True)
    return tiled
