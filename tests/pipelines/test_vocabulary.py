from pathlib import Path

import pytest

from pipelines.config import load
from pipelines.errors import ConfigError
from pipelines.foreign import ROWS, Foreign, by_name, fold
from pipelines.keys import is_known, schema_keys
from pipelines.toml_text import spell_key, spell_value
from pipelines.vocabulary import (
    DESCRIBED,
    DESCRIBED_VALUES,
    RETIRED,
    advice,
    is_planned,
    is_planned_value,
    planned_keys,
    planned_values,
    suggestions,
)
from tests.pipelines.test_config import BASE, TRAIN

FOREIGN = list(by_name().values())
KEYS = [(*filter(None, table.split(".")), name) for table, keys in DESCRIBED.items() for name in keys.split()]
VALUES = [(tuple(key.split(".")), value) for key, values in DESCRIBED_VALUES.items() for value in values.split()]


def complaints(folder: Path, *overrides: str) -> list[str]:
    path = folder / "x.toml"
    path.write_text(BASE + TRAIN, encoding="utf-8")
    with pytest.raises(ConfigError) as caught:
        load(path, overrides)
    return list(caught.value.problems)


def given(path: tuple[str, ...], value: str) -> str:
    return f"{spell_key(path).replace('prep.source.', 'prep.source.0.')}={value}"


@pytest.mark.parametrize("path", KEYS, ids=spell_key)
def test_every_described_key_is_in_the_schema_or_refused_as_not_supported_yet(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    if path not in schema_keys():
        (found,) = complaints(tmp_path, given(path, "1"))
        assert found.endswith(": not supported yet; remove it")
        assert is_planned(path)


@pytest.mark.parametrize("key", RETIRED)
def test_a_key_that_is_not_needed_is_refused_with_the_reason(tmp_path: Path, key: str) -> None:
    path = tuple(key.split("."))
    (found,) = complaints(tmp_path, given(path, "1"))
    assert found.endswith(f": not a key here: {RETIRED[key]}; remove it")
    assert path not in schema_keys()
    assert not is_planned(path)


@pytest.mark.parametrize(("path", "value"), VALUES, ids=str)
def test_every_described_value_is_in_the_schema_or_refused_as_not_supported_yet(
    tmp_path: Path, path: tuple[str, ...], value: str
) -> None:
    key = schema_keys()[path]
    if value not in key.values and not key.is_text:
        text = spell_value(value.replace("*", "x"))
        (found,) = complaints(tmp_path, given(path, f"[{text}]" if key.is_array else text))
        assert f" = {text}: not supported yet; expected " in found


def test_the_schema_wins_over_what_is_described() -> None:
    assert not set(planned_keys()) & schema_keys().keys()
    for path, key in schema_keys().items():
        assert not is_planned(path)
        assert not any(is_planned_value(path, value) for value in key.values)
        assert not set(planned_values(path)) & set(key.values)


@pytest.mark.parametrize("foreign", FOREIGN, ids=lambda foreign: foreign.name)
def test_every_name_of_another_trainer_leads_to_a_key_or_to_what_to_do(foreign: Foreign) -> None:
    ours = tuple(foreign.key.split("."))
    if foreign.key:
        assert is_known(ours) or is_planned(ours)
        supported = "" if is_known(ours) else ", which is not supported yet"
        expected = f"unknown key; {foreign.name} of {foreign.used_by} is {foreign.key} here{supported}"
    else:
        expected = f"unknown key; {foreign.note}"
        assert foreign.note
    path = tuple(foreign.name.split("."))
    if not is_planned(path):
        assert advice(path).startswith(expected)
    assert advice(("prep", "pack", *path)).startswith(expected)
    assert advice(("prep", "source", 3, *path)).startswith(expected)


def test_names_of_other_trainers_are_many_and_each_listed_once() -> None:
    assert len(FOREIGN) == sum(len(listed.split()) for _, listed, _, _ in ROWS) > 300
    assert {name.used_by for name in FOREIGN} >= {"XTuner", "InternEvo", "axolotl", "LLaMA-Factory", "Transformers"}


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ("max-seq-length", "unknown key; max_seq_length of TRL and Unsloth is prep.pack.capacity here"),
        ("MaxSeqLength", "unknown key; max_seq_length of TRL and Unsloth is prep.pack.capacity here"),
        ("learning_rat", "unknown key; learning_rate of Transformers and axolotl is train.optimizer.lr here"),
        ("optim_wrapper.dtype", "unknown key; optim_wrapper.dtype of XTuner is train.precision here"),
        ("llm.torch_dtype", "unknown key; llm.torch_dtype of XTuner is model.torch_dtype here"),
        ("torch_dtype", "unknown key, did you mean 'model.torch_dtype'?"),
        ("lr", "unknown key, did you mean 'train.optimizer.lr'?"),
        ("Capacity", "unknown key, did you mean 'prep.pack.capacity'?"),
        ("pack", "unknown key, did you mean 'prep.pack'?"),
        (
            "prep.pack.steps",
            "unknown key, did you mean 'train.eval.steps', 'train.log.steps' or 'train.profile.steps'?",
        ),
        ("lora_alpha", "unknown key, did you mean 'model.lora.lora_alpha'?"),
        ("model.lora.rank", "unknown key; lora.rank of other trainers is model.lora.r here"),
        ("load_in_4bit", "unknown key, did you mean 'model.quantization.load_in_4bit'?"),
        ("model.quantization.load_in_8bit", "not a key here: load_in_4bit is what"),
        ("prep.sources", "unknown key, did you mean 'source'?"),
        ("zzz", "unknown key; remove it"),
    ],
)
def test_advice_names_the_key_that_was_meant(path: str, text: str) -> None:
    assert advice(tuple(path.split("."))).startswith(text)


@pytest.mark.parametrize("path", [path for path in schema_keys() if len(path[-1]) > 4], ids=spell_key)
def test_a_key_with_one_letter_missing_is_recognised(path: tuple[str, ...]) -> None:
    others = {fold(key[-1]) for key in schema_keys()} | {fold(key[-1]) for key in planned_keys()}
    for index in range(len(path[-1])):
        name = path[-1][:index] + path[-1][index + 1 :]
        if fold(name) not in others and fold(name) not in map(fold, by_name()):
            assert path in suggestions((*path[:-1], name)), name
