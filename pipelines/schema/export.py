"""[export]: a checkpoint into the weights that others load."""

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveInt,
    model_validator,
)

from pipelines.schema.values import LocalPath, NonNegativeReal, Share, Table, Whole, fault


class HfExport(Table):
    """[export.hf]: a directory that plain Transformers loads."""

    dtype: Literal["auto", "bfloat16", "float16", "float32"] = "auto"
    """Number format of the weights; auto is model.torch_dtype. What a class computes in float32 alone stays so."""
    layout: Literal["auto", "original"] = "auto"
    """Names and fusion of the tensors: auto is as Transformers publishes them, Llama's for InternLM, InternLM2 and
    Baichuan; original is as those came, for engines that know them."""
    max_shard_size: PositiveInt = 5_000_000_000
    """Bytes per safetensors file."""
    merge_lora: bool = True
    """Add an adapter to the model it was trained on; false is refused, since `adapter` among the targets says so."""


class TurbomindExport(Table):
    """[export.turbomind]: what LMDeploy's TurboMind engine serves."""

    mode: Literal["workspace", "hf_direct"] = "workspace"
    """workspace is the weight folder that LMDeploy 0.6 to 0.7.3 serves; hf_direct checks that LMDeploy 0.10 and newer
    serves the hf export, and writes the files to serve it with."""
    tp: Annotated[Literal[1, 2, 4, 8], Whole] = 1
    """Tensor-parallel size, frozen into the files of a workspace."""
    weight_type: Literal["bfloat16", "float16"] = "bfloat16"
    """Number format of the weights; with hf_direct that of the hf export, with awq that of what is not in 4 bits."""
    model_format: Literal["hf", "awq"] = "hf"
    """awq passes on 4-bit weights of AutoAWQ, where export.checkpoint is a directory of them; into a workspace."""
    group_size: Annotated[Literal[128], Whole] = 128
    """Weights that share a scale, with awq; the only number that the engine has kernels for."""
    model_name: str | None = None
    """Name under which it is served; by default run.name."""
    session_len: PositiveInt | None = None
    """Longest text in tokens, prompt and answer together; by default what the model was made for."""
    chat_template: str = Field(default="from_template", min_length=1)
    """from_template writes the template that was trained with in LMDeploy's form, for `--chat-template`; anything else
    is LMDeploy's name of a built-in one, such as base."""


class ExportVerify(Table):
    """[export.verify]: what is compared after writing."""

    max_abs_diff: NonNegativeReal = 0.0
    """Largest difference accepted between the logits of the export and of the checkpoint's weights, both in the
    exported format. The weights themselves are always compared bit for bit."""
    greedy_tokens: NonNegativeInt = 16
    """Length of the greedy continuations whose tokens and logits are compared; 0 leaves them out, and then no model is
    loaded, whose size would have to fit the memory."""


class ExportEval(Table):
    """[export.eval]: conversations whose last assistant message the exported model must reproduce."""

    file: LocalPath = Field(examples=["data/held-out.jsonl"])
    """JSON lines of OpenAI messages; the last message is the expected answer."""
    max_new_tokens: PositiveInt = 64
    """Tokens generated at most for an answer."""
    min_accuracy: Share = 0.0
    """Share of exact answers below which the export fails its check."""


class Export(Table):
    """[export]: a checkpoint into the weights that others load."""

    checkpoint: Annotated[Literal["latest", "best"] | NonNegativeInt | LocalPath, Field(union_mode="left_to_right")] = (
        "latest"
    )
    """Newest complete checkpoint of the run, the one of lowest held-out loss (best), a step, or a directory: of a
    checkpoint that packtrain, DeepSpeed or torch.distributed.checkpoint wrote, or of safetensors."""
    targets: list[Literal["hf", "turbomind", "adapter"]] = Field(default=["hf"], min_length=1)
    """A Hugging Face directory, TurboMind weights, a PEFT directory of the adapter alone (adapter), or several."""
    merge_base: Literal["original", "dequantized"] = "original"
    """What an adapter trained on 4 bits is merged into: the model as it was, or the 4-bit numbers unpacked, which
    training multiplied with. The export says how far either is from what was trained. Not of `adapter`, which is merged
    into nothing."""
    hf: HfExport = HfExport()
    turbomind: TurbomindExport = TurbomindExport()
    verify: ExportVerify = ExportVerify()
    eval: ExportEval | None = None

    @model_validator(mode="after")
    def _a_base_is_merged_into(self) -> Self:
        if self.merge_base != "original" and set(self.targets) == {"adapter"}:
            raise fault('an adapter alone is merged into nothing; remove it, or add "hf" to targets', "merge_base")
        return self
