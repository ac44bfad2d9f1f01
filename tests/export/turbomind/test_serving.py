"""Serving: LMDeploy is told how the model was prompted, by either mode's files, or why it cannot be."""

import json
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from export.run import run
from export.turbomind.chat_form import ChatForm, Message, form_of
from export.turbomind.geometry import Unservable
from export.turbomind.releases import served_by
from pipelines.artifacts import Manifest
from pipelines.errors import CheckError, ConfigError
from pipelines.prompt import compiled
from tests.export.tiny import LLAMA, TEMPLATE, pipeline, write_run

DIRECT: dict[str, Any] = {
    "targets": ["turbomind", "hf"],
    "hf": {"dtype": "bfloat16"},
    "turbomind": {"mode": "hf_direct", "tp": 2, "session_len": 256, "model_name": "tiny model"},
    "verify": {"greedy_tokens": 0},
}
DEFAULT_SYSTEM = (
    "{%- if messages[0]['role'] != 'system' -%}<|im_start|>system\nYou help.<|im_end|>\n{% endif -%}" + TEMPLATE
)


def renderer(template: str) -> Callable[[Sequence[Message], bool], str]:
    render = compiled(template)
    return lambda messages, asks: render({"messages": messages, "add_generation_prompt": asks, "special": {}})


def test_a_template_without_system_text_of_its_own_is_told_by_the_one_of_lmdeploys_that_has_none() -> None:
    form = form_of(renderer(TEMPLATE), stop_words=["<|im_end|>"])
    assert json.loads(form.as_json()) == {
        "model_name": "yi",  # where no system text is given, the others of LMDeploy 0.7.3 say an empty one
        "system": "<|im_start|>system\n",
        "eosys": "<|im_end|>\n",
        "user": "<|im_start|>user\n",
        "eoh": "<|im_end|>\n",
        "assistant": "<|im_start|>assistant\n",
        "eoa": "<|im_end|>",
        "separator": "\n",
        "stop_words": ["<|im_end|>"],
        "capability": "chat",
    }


def test_system_text_of_the_template_is_said_where_none_is_given() -> None:
    form = form_of(renderer(DEFAULT_SYSTEM), stop_words=["<|im_end|>"])
    assert (form.meta_instruction, form.system, form.user) == (
        "You help.",
        "<|im_start|>system\n",
        "<|im_start|>user\n",
    )
    assert json.loads(form.as_json())["model_name"] == "packtrain"
    assert form.prompt([{"role": "user", "content": "x"}]).startswith("<|im_start|>system\nYou help.<|im_end|>\n<|im_s")


def test_what_the_tokenizer_adds_is_left_to_it() -> None:
    form = form_of(renderer("<s>" + TEMPLATE), stop_words=["<|im_end|>"], bos="<s>")
    assert form == form_of(renderer(TEMPLATE), stop_words=["<|im_end|>"])


@pytest.mark.parametrize(
    ("template", "finding"),
    [
        ("<s>" + TEMPLATE, "begins with '<s>'"),
        (TEMPLATE.replace("['content'] }", "['content'] | trim }"), "takes spaces and line ends off what is said"),
        ("{% if messages | length > 4 %}!{% endif %}" + TEMPLATE, "depends on more than who speaks"),
        (TEMPLATE.replace("{{ message['content'] }}", "{{ message['content'][:3] }}"), "does not show each message"),
        ("{{ raise_exception('no') }}" + TEMPLATE, "refuses a conversation of user .*no"),
        (TEMPLATE + "{% if messages | length > 1 %}Now:{% endif %}", "earlier turns look otherwise"),
    ],
)
def test_what_the_form_cannot_say_is_refused_with_the_reason(template: str, finding: str) -> None:
    with pytest.raises(Unservable, match=finding) as caught:
        form_of(renderer(template), stop_words=["<|im_end|>"])
    assert caught.value.key == "export.turbomind.chat_template"


def test_lmdeploy_continues_a_conversation_as_the_form_says() -> None:
    form = ChatForm("S", "s", None, "U", "u", "A", "a", "-")
    messages = [{"role": role, "content": "x"} for role in ("system", "user", "assistant", "user")]
    assert form.prompt(messages) == "SxsUxuAxa-UxuA"


def test_a_model_that_the_engine_learnt_of_later_is_served_by_later_releases() -> None:
    assert served_by("hf_direct", "Glm4MoeLiteForCausalLM")["lmdeploy"] == "0.14.0 and newer"
    assert served_by("hf_direct", "Qwen3ForCausalLM")["lmdeploy"] == "0.10.0 and newer"


def test_a_folder_comes_with_its_chat_template_and_the_command_that_serves_it(tmp_path: Path) -> None:
    write_run(tmp_path)
    run(pipeline(tmp_path, targets=["turbomind"], verify={"greedy_tokens": 0}))
    folder = tmp_path / "work" / "tiny" / "export" / "turbomind"
    assert json.loads((folder / "lmdeploy_chat_template.json").read_bytes())["user"] == "<|im_start|>user\n"
    assert json.loads((folder / "engine_config.json").read_bytes()) == {"tp": 1, "session_len": 512}
    assert command(folder) == (
        "lmdeploy serve api_server . --backend turbomind --tp 1 --model-name tiny --session-len 512 "
        "--chat-template lmdeploy_chat_template.json"
    )
    manifest = Manifest.read(folder)
    assert manifest is not None
    assert manifest.facts["serving"] == {"engine": "turbomind", "lmdeploy": "0.6.0 to 0.7.3", "mode": "workspace"}


def test_hf_direct_checks_the_hf_export_and_writes_what_serves_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    write_run(tmp_path)
    with caplog.at_level("INFO"):
        run(pipeline(tmp_path, **DIRECT))
    home = tmp_path / "work" / "tiny" / "export"
    assert f"serve it with LMDeploy 0.10.0 and newer: sh {home / 'turbomind' / 'serve.sh'}" in caplog.text
    names = {path.name for path in (home / "turbomind").iterdir()}
    assert names == {"lmdeploy_chat_template.json", "engine_config.json", "serve.sh", "manifest.json"}
    template = json.loads((home / "turbomind" / "lmdeploy_chat_template.json").read_bytes())
    assert template == {"model_name": "hf", "model_path": "../hf"}
    assert command(home / "turbomind") == (
        "lmdeploy serve api_server ../hf --backend turbomind --tp 2 --model-name 'tiny model' --dtype bfloat16 "
        "--session-len 256 --chat-template lmdeploy_chat_template.json"
    )
    assert str(tmp_path) not in "".join((home / "turbomind" / name).read_text() for name in names)
    manifest = Manifest.read(home)
    assert manifest is not None
    assert manifest.facts["serving"] == {"engine": "turbomind", "lmdeploy": "0.10.0 and newer", "mode": "hf_direct"}
    assert manifest.facts["verified"]["turbomind"]["ready"] == [
        "architecture",
        "dtype",
        "quantization",
        "rope",
        "stop",
        "tied",
        "tokenizer",
        "weights",
    ]
    assert 'here + "/hf"' in (home / "opencompass_turbomind.py").read_text().replace("'", '"')


@pytest.mark.parametrize(
    ("changed", "finding"),
    [
        ({"torch_dtype": "float16"}, "torch_dtype in config.json is 'float16'"),
        ({"tie_word_embeddings": None}, "does not say tie_word_embeddings"),
        ({"rope_theta": 1.0}, "rope_parameters and the older rope_theta and rope_scaling in config.json differ"),
        ({"rope_parameters": None}, "has no rope_parameters"),
        ({"architectures": ["BaichuanForCausalLM"]}, "names BaichuanForCausalLM, which the engine does not know"),
        ({"head_dim": 32}, "means heads of 32 numbers"),
        ({"quantization_config": {}}, "still has the quantization_config of training"),
        ("tokenizer.json", "tokenizer.json is missing"),
        ("chat_template.jinja", "the chat template is missing"),
        ("model.safetensors", "it has no safetensors"),
        ("generation_config.json", "lacks 2, which ends an answer"),
    ],
)
def test_each_thing_that_would_be_served_wrong_is_named(
    written: Path, changed: dict[str, Any] | str, finding: str
) -> None:
    from export.job import Job
    from export.plan import Plan
    from export.turbomind.hf_direct import check_ready

    plain = pipeline(written, **DIRECT)
    plan = Plan.of(plain)
    model = Job(plain, plan, plan.source).model("turbomind")
    hf = plan.home / "hf"
    path = hf / (changed if isinstance(changed, str) else "config.json")
    before = path.read_bytes()
    if isinstance(changed, dict):
        path.write_text(json.dumps(json.loads(before) | changed))
    elif changed == "generation_config.json":
        path.write_text("{}")
    else:
        path.unlink()
    try:
        with pytest.raises(CheckError, match=finding):
            check_ready(model, hf, plain.export.turbomind)
    finally:
        path.write_bytes(before)
    assert check_ready(model, hf, plain.export.turbomind)["ready"]


def test_a_tensor_that_no_file_has_is_named(written: Path) -> None:
    from safetensors.numpy import save_file

    from export.job import Job
    from export.plan import Plan
    from export.turbomind.hf_direct import check_ready

    plain = pipeline(written, **DIRECT)
    plan = Plan.of(plain)
    model = Job(plain, plan, plan.source).model("turbomind")
    path = plan.home / "hf" / "model.safetensors"
    before = path.read_bytes()
    tensors = {"model.norm.weight": np.zeros(2, np.float32), "lm_head.weight": np.zeros(2, np.float32)}
    save_file(tensors, path)
    try:
        with pytest.raises(CheckError, match=r"no file has model\.embed_tokens\.weight"):
            check_ready(model, plan.home / "hf", plain.export.turbomind)
    finally:
        path.write_bytes(before)


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("written")
    write_run(folder)
    run(pipeline(folder, **DIRECT))
    return folder


@pytest.mark.parametrize(
    ("config", "export", "finding"),
    [
        ({}, {"targets": ["turbomind"]}, 'what is served is the hf export; add "hf"'),
        ({}, {"hf": {"dtype": "float16"}}, "the hf export is float16, and the engine would round it again"),
        ({}, {"turbomind": {"mode": "hf_direct", "tp": 4}}, "tp = 4: does not divide 2 attention heads"),
        ({"head_dim": 32}, {}, "heads of 64 and 128 numbers, this LlamaForCausalLM has 32"),
        ({"model_type": "mistral", "architectures": ["MistralForCausalLM"]}, {}, "does not know MistralForCausalLM"),
        ({}, {"turbomind": {"mode": "hf_direct", "session_len": 513}}, "made for 512 tokens; use 512 or less"),
    ],
)
def test_what_hf_direct_cannot_serve_is_refused_before_work(
    tmp_path: Path, config: dict[str, Any], export: dict[str, Any], finding: str
) -> None:
    write_run(tmp_path, LLAMA | config)
    with pytest.raises(ConfigError, match=finding):
        run(pipeline(tmp_path, **DIRECT | export))
    assert not (tmp_path / "work" / "tiny" / "export" / "hf").exists()


def test_a_built_in_template_is_named_where_the_engine_reads_it(tmp_path: Path) -> None:
    write_run(tmp_path)
    how = {"turbomind": {"chat_template": "internlm2"}, "verify": {"greedy_tokens": 0}}
    run(pipeline(tmp_path, targets=["turbomind"], **how))
    folder = tmp_path / "work" / "tiny" / "export" / "turbomind"
    assert "--chat-template" not in command(folder)
    settings = yaml.safe_load((folder / "triton_models" / "weights" / "config.yaml").read_bytes())
    assert settings["model_config"]["chat_template"] == "internlm2"
    assert not (folder / "lmdeploy_chat_template.json").exists()


def command(folder: Path) -> str:
    """What serve.sh runs."""
    line = next(line for line in (folder / "serve.sh").read_text().splitlines() if line.startswith("exec "))
    words = shlex.split(line.removeprefix("exec "))
    assert words[-1] == "$@"
    return shlex.join(words[:-1])
