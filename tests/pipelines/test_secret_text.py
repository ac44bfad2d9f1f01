"""Secrets in text that is shown: taken out by their place, or as a variable's value; ordinary text stays as it is."""

import subprocess
import sys
from time import process_time

import pytest

from pipelines.secret_text import without_secrets

CANARY = "canary-3141592653589793"


@pytest.mark.parametrize(
    "text",
    [
        f"http://me:{CANARY}@hub.example says that {CANARY} is wrong",
        f"404 for url http://me:{CANARY}@hub.example/api/models",
        f"ProxyError('https://{CANARY}@proxy.example:3128')",
        f"https:/me:{CANARY}@hub.example/run: no manifest.json here",
        f"headers {{'Authorization': 'Bearer {CANARY}'}}",
        f"Authorization: Basic {CANARY}",
        f"GET /file?X-Amz-Signature={CANARY}&part=1",
        f"https://hub.example/x?access_token={CANARY}",
        f'x.toml:3:1: model.hf_token = "{CANARY}": unknown key',
        f'{{"hf_token": "{CANARY}"}}',
        f"--set model.api_key='{CANARY}': unknown key",
        f'model.source_args = {{token = "{CANARY}", endpoint = "x"}}',
        "--set train.wandb_key_password=" + CANARY,
        f"hf_{CANARY.replace('-', 'x')}",
        f'--set api_key={CANARY}: {CANARY} is no TOML value; text needs quotes: "{CANARY}"',
        f"what OUR_TOKEN holds is {CANARY}",
        f"as a part: x{CANARY}y",
    ],
)
def test_a_secret_is_hidden_and_a_second_time_changes_nothing(text: str) -> None:
    held = {"OUR_TOKEN": CANARY} if "what" in text or "part:" in text else {}
    shown = without_secrets(text, held)
    assert CANARY not in shown
    assert CANARY.replace("-", "x") not in shown
    assert "***" in shown
    assert without_secrets(shown, held) == shown


def test_a_password_of_a_proxy_is_hidden_also_where_it_stands_alone() -> None:
    assert CANARY not in without_secrets(f"407: {CANARY}", {"HTTPS_PROXY": f"http://me:{CANARY}@proxy.example:3128"})


@pytest.mark.parametrize(
    "text",
    [
        'x.toml:8:1: template.eos_token = "<|im_end|>": expected text',
        'x.toml:8:1: model.source_args = {token_env = "HUB_TOKEN"}: environment variable HUB_TOKEN is not set; set it',
        "packed 1,204,331 documents into 97,845 bins of 8,192 tokens, 99.2% full, 41 s",
        "basic instructions and a bearer somewhere",
        "no key: of 3 tokens = 4; data/a.jsonl:3: token 5: expected text",
        "see https://docs.example/page?part=2#tokens and s3://bucket/key@2",
        'x.toml:5:1: tokenizer.name_or_path = "org/name": no such directory',
        'prep.source.0.key = "text"',
        'x.toml:8:1: model.source_args.token_env = "HF_TOKEN": not set',
        "x.jsonl:3: the record's token: 70000 is not below 65536; of tokens: 12",
    ],
)
def test_ordinary_text_stays(text: str) -> None:
    assert without_secrets(text, {"PATH": "/bin", "KEY": "ab", "RUN_TOKEN": ""}) == text


def test_what_is_said_of_a_secret_stays() -> None:
    assert (
        without_secrets("x.toml:3:1: model.token = 5: unknown key", {})
        == 'x.toml:3:1: model.token = "***": unknown key'
    )


def test_a_file_that_a_variable_names_is_no_secret() -> None:
    held = {"CLOUD_CREDENTIALS": __file__, "OUR_TOKEN": "/" + CANARY, "API_KEY": " " * 9}
    assert without_secrets(f"{__file__}: damaged; /{CANARY}" + " " * 9, held) == f"{__file__}: damaged; ***" + " " * 9


def test_a_thousand_secrets_are_hidden_in_time() -> None:
    text = "".join(f"token=canary{number:06} " for number in range(100_000))
    begin = process_time()
    assert "canary" not in without_secrets(text, {})
    assert process_time() - begin < 20  # minutes, if each were searched for in all of the text


def test_an_error_that_nothing_catches_is_shown_without_its_secrets() -> None:
    program = "import sys; from pipelines.secret_text import show_exception; sys.excepthook = show_exception\n"
    program += f"raise RuntimeError('http://me:{CANARY}@hub.example')"
    answer = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert answer.returncode == 1
    assert "RuntimeError: http://***@hub.example" in answer.stderr


@pytest.mark.parametrize("part", ["a.", "://", "a_", "?x", "Bearer ", "hf_", "secret", "token=", '"', "token token"])
def test_a_long_text_is_looked_through_in_time(part: str) -> None:
    text = part * (60_000 // len(part))  # minutes, were the time to grow with its square
    assert len(without_secrets(text, {})) > 0
