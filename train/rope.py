"""Models for longer documents than they were made for: more positions, and rotary embeddings scaled to them."""

import math
from typing import Any

from transformers import PretrainedConfig

from pipelines.errors import ConfigError
from pipelines.schema import Pipeline

KEPT = ("rope_theta", "partial_rotary_factor")
"""What a scaling leaves as it is, unless it says otherwise."""
FROM_ORIGINAL = ("yarn", "llama3")
"""Scalings that go by the number of positions that the model was made for."""
FIXED = ("default", "linear", *FROM_ORIGINAL)
"""Scalings by the position alone. The others go by the longest document seen, which ranks that share a pack and
documents beside each other in it would disagree about."""


def extend_positions(pipeline: Pipeline, config: PretrainedConfig) -> None:
    """Give a model's config the positions and the scaling that [model] asks for; the export has them as well.

    Without `rope_scaling`, more positions are scaled linearly by the factor rounded up to a whole number, as XTuner
    does it.

    Raises:
        ConfigError: if the model has no rotary positions, has as many already, or is scaled in a way of its own.
    """
    asked, scaling = pipeline.model.max_position_embeddings, pipeline.model.rope_scaling
    if asked is None and scaling is None:
        return
    text: Any = config.get_text_config()
    key = "max_position_embeddings" if scaling is None else "rope_scaling"
    rope, limit = getattr(text, "rope_parameters", None), getattr(text, "max_position_embeddings", None)
    if not rope or limit is None:
        raise _refusal(pipeline, key, f"{config.model_type} models have no rotary positions to extend; remove it")
    if asked is not None and asked < limit:
        raise _refusal(pipeline, "max_position_embeddings", f"the model has {limit} already; remove it")
    if text.nested_rope_parameter_keys(rope):
        raise _refusal(
            pipeline, key, f"{config.model_type} models rotate layers in several ways; extend their config.json instead"
        )
    if scaling is not None:
        text.rope_parameters = _scaled(pipeline, rope, scaling, limit)
    elif asked is not None and asked > limit:
        if rope["rope_type"] != "default":
            raise _refusal(
                pipeline, key,
                f"the model's {limit} positions are scaled already ({rope['rope_type']}); set model.rope_scaling too",
            )  # fmt: skip
        text.rope_parameters = _scaled(
            pipeline, rope, {"rope_type": "linear", "factor": float(math.ceil(asked / limit))}, limit
        )
    text.max_position_embeddings = asked or limit
    try:
        text.validate_rope()
    except (KeyError, ValueError, TypeError) as error:
        raise _refusal(pipeline, key, f"{error.args[0]}") from error


def _scaled(pipeline: Pipeline, rope: dict[str, Any], scaling: dict[str, Any], limit: int) -> dict[str, Any]:
    """Rotary parameters as Transformers spells them, from a table that may use the older name for its type."""
    table = dict(scaling)
    kind = table.pop("type", None)
    kind = table.setdefault("rope_type", kind)
    if kind not in FIXED:
        raise _refusal(pipeline, "rope_scaling", f"rope_type = {kind!r}: use one of {', '.join(FIXED)}")
    if kind in FROM_ORIGINAL:
        table.setdefault("original_max_position_embeddings", rope.get("original_max_position_embeddings", limit))
    return {name: rope[name] for name in KEPT if name in rope} | table


def _refusal(pipeline: Pipeline, key: str, finding: str) -> ConfigError:
    return ConfigError(f"{pipeline.cite(f'model.{key}')}: {finding}")
