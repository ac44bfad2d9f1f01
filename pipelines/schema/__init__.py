"""The tables of a pipeline TOML: one model per table, one documented field per key.

A default is a recommendation; a key without one is a decision the user has to make. Sizes are integers in
tokens, packs, steps or bytes; ratios that decide bytes (weights) are exact decimals, all other reals are floats.
"""

from pipelines.schema.export import Export, ExportEval, ExportVerify, HfExport, TurbomindExport
from pipelines.schema.model import COMMIT, Lora, Model, Origin, Quantization, Run, Tokenizer
from pipelines.schema.pipeline import Pipeline
from pipelines.schema.prep import Eval, Mix, Order, Output, PackTable, Prep, Source
from pipelines.schema.template import Loss, Template
from pipelines.schema.train import (
    CheckpointTable,
    Deepspeed,
    Optimizer,
    Parallel,
    Runtime,
    Scheduler,
    Train,
    TrainEval,
    TrainLog,
)
from pipelines.schema.values import (
    Alphas,
    Beta,
    Columns,
    LocalPath,
    MapName,
    Name,
    NonNegativeReal,
    PositiveExact,
    PositiveReal,
    PythonMap,
    Ranks,
    Real,
    Share,
    Table,
    Verbatim,
    Whole,
    expand,
    fault,
)

__all__ = [
    "COMMIT",
    "Alphas",
    "Beta",
    "CheckpointTable",
    "Columns",
    "Deepspeed",
    "Eval",
    "Export",
    "ExportEval",
    "ExportVerify",
    "HfExport",
    "LocalPath",
    "Lora",
    "Loss",
    "MapName",
    "Mix",
    "Model",
    "Name",
    "NonNegativeReal",
    "Optimizer",
    "Order",
    "Origin",
    "Output",
    "PackTable",
    "Parallel",
    "Pipeline",
    "PositiveExact",
    "PositiveReal",
    "Prep",
    "PythonMap",
    "Quantization",
    "Ranks",
    "Real",
    "Run",
    "Runtime",
    "Scheduler",
    "Share",
    "Source",
    "Table",
    "Template",
    "Tokenizer",
    "Train",
    "TrainEval",
    "TrainLog",
    "TurbomindExport",
    "Verbatim",
    "Whole",
    "expand",
    "fault",
]
