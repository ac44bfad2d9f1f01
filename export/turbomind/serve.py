"""What serves a TurboMind export: a chat template, settings of the engine and a command; they hold no path."""

import shlex
from pathlib import Path

from export.hf import Model
from export.turbomind.chat_form import FORM, chat_form
from export.turbomind.config import FROM_TEMPLATE, session_len
from export.turbomind.geometry import architecture_of
from export.turbomind.releases import releases
from pipelines.artifacts import canonical_json
from pipelines.schema import TurbomindExport

ENGINE = "engine_config.json"
COMMAND = "serve.sh"
HF = Path("..") / "hf"
"""Where the Hugging Face directory is from here."""


def serving_files(model: Model, table: TurbomindExport, model_name: str) -> dict[str, bytes]:
    """Contents by file name.

    Raises:
        Unservable: if LMDeploy cannot be told how the model was prompted in training.
    """
    direct = table.mode == "hf_direct"
    template = _template(model, table)
    options = ["--backend", "turbomind", "--tp", str(table.tp), "--model-name", model_name]
    if direct:
        options += ["--dtype", table.weight_type]
    options += ["--session-len", str(session_len(model.config, table))]
    if template is not None:
        options += ["--chat-template", FORM]
    elif table.chat_template != FROM_TEMPLATE and direct:
        options += ["--chat-template", table.chat_template]  # in a folder config.yaml says it
    served_with = releases(table.mode, architecture_of(model.config))
    text = f"""#!/bin/sh
# Serves the model with LMDeploy {served_with}. Copy it to change it: an export writes it again.
set -eu
cd "$(dirname "$0")"
exec lmdeploy serve api_server {HF.as_posix() if direct else "."} {shlex.join(options)} "$@"
"""
    engine: dict[str, int | str] = {"tp": table.tp, "session_len": session_len(model.config, table)}
    if direct:
        engine |= {"dtype": table.weight_type, "model_format": "hf"}
    files = {COMMAND: text.encode("utf-8"), ENGINE: canonical_json(engine)}
    return files if template is None else {**files, FORM: template}


def _template(model: Model, table: TurbomindExport) -> bytes | None:
    if table.mode == "workspace":
        form = chat_form(model, table)
        return None if form is None else form.as_json()
    if table.chat_template != FROM_TEMPLATE or not model.chats:
        return None
    # These releases render the tokenizer's own template, which is what was trained with, whatever it says.
    return canonical_json({"model_name": "hf", "model_path": HF.as_posix()})
