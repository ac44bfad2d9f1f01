"""Every family of the ready pipelines through all stages by its own recipes, with a tiny random model of it.

Only what could not be here is set otherwise: the model is a directory, a batch is one pack, and a run two steps.
"""

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from pipelines.cli import main
from pipelines.probes import Probes
from pipelines.recipes import READY, copy
from pipelines.shards import Pack, ShardReader
from pipelines.token_text import TokenText
from tests.pipelines.families import FAMILIES, SYSTEM, TALK, Family, write_model
from tests.prep.formats.test_ftdp import line
from tests.prep.formats.test_ftdp import write as write_ftdp

pytestmark = pytest.mark.slow

CHATS, TEXTS, LINES = 12, 24, 40
TEXT = "The fox № is in 上海. " * 4
HERE = ('model.source="local"', 'model.name_or_path="model"', 'prep.order.mode="write"')
SMALL = ("train.global_batch_size=1", "train.max_steps=2")
CUT = ("prep.pack.capacity=192",)
"""For token files, which are cut into packs and leave out the rest."""
ALONE = ("train.parallel.sequence_parallel_size=1",)
BESIDE = ("train.parallel.sequence_parallel_size=2", "train.nproc_per_node=2")
CASES = [(recipe, name) for name, family in FAMILIES.items() for recipe in family.recipes]
SHARED = "llama3.1-8b-instruct-full-1m"
"""Of which two ranks share each pack."""


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU, and without what DeepSpeed leaves behind: after ZeRO 3 `linear` stays its own."""
    import torch

    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    monkeypatch.setattr("torch.cuda.device_count", lambda: 0)
    monkeypatch.setattr("torch.nn.functional.linear", torch._C._nn.linear)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """The model directory of each family, made when it is asked for."""
    home = tmp_path_factory.mktemp("models")

    class Models(dict[str, Path]):
        def __missing__(self, name: str) -> Path:
            self[name] = home / str(len(self))
            write_model(FAMILIES[name], self[name])
            return self[name]

    return Models()


@pytest.mark.parametrize(("recipe", "name"), CASES, ids=[recipe for recipe, _ in CASES])
def test_a_recipe_trains_what_it_should_and_exports_a_model_that_loads(
    recipe: str, name: str, models: Mapping[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = FAMILIES[name]
    rows = write_data(family, tmp_path)
    place_model(models[name], tmp_path / "model", recipe)
    monkeypatch.chdir(tmp_path)
    copy(recipe, tmp_path)
    sets = (
        *HERE,
        *SMALL,
        *(CUT if recipe.endswith("ftdp") else ()),
        *(BESIDE if recipe == SHARED else ALONE),
        *targets(family, recipe),
    )
    run("prep", recipe, sets, monkeypatch)
    run("check", recipe, sets, monkeypatch)
    home = tmp_path / "work" / recipe
    shards = ShardReader(home / "prep")
    assert [segment for pack in shards for segment in segments(pack)]
    if recipe.endswith("ftdp"):
        check_tokens(shards, rows)
    else:
        check_texts(shards, TokenText(home / "prep" / "tokenizer"), expected(family, recipe))
    run("train", recipe, sets, monkeypatch)
    losses = [json.loads(row)["loss"] for row in (home / "train" / "metrics.jsonl").read_text().splitlines()]
    assert len(losses) == 2
    assert np.isfinite(losses).all()
    run("export", recipe, sets, monkeypatch)
    check_export(home / "export" / "hf", Probes.read(home / "prep" / "tokenizer"), chats=bool(chats_of(recipe)))
    written = {path.name for path in (home / "export").iterdir() if path.is_dir()}
    assert written == ({"hf", "turbomind"} if family.turbomind else {"hf"} | set(recipe_targets(recipe)))


def test_every_model_of_the_recipes_belongs_to_a_family() -> None:
    """A recipe of another model needs a family here, or a place in one."""
    tested = {
        re.findall(r"parents/models/(.*)\.toml", (READY / f"{recipe}.toml").read_text())[0] for recipe, _ in CASES
    }
    untested = {path.stem for path in (READY / "parents" / "models").glob("*.toml")} - tested
    assert untested == {  # larger or newer ones of the same config.json and template
        *("internlm2-chat-20b", "llama2-70b", "llama3-70b-instruct"),
        *("llama3.2-3b-instruct", "qwen1.5-14b-chat", "qwen1.5-72b-chat", "qwen2.5-14b-instruct"),
        *("qwen2.5-72b-instruct", "qwen2.5-7b-instruct-1m", "qwen2.5-coder-7b", "qwen3-0.6b", "qwen3-32b"),
        "yi-34b",
    }


def run(stage: str, recipe: str, sets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """The command in this process; its ranks repeat it where it starts some."""
    arguments = [stage, f"{recipe}.toml", *(part for one in sets for part in ("--set", one))]
    monkeypatch.setattr("sys.argv", ["packtrain", *arguments])
    done = CliRunner().invoke(main, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == 0, done.output


def place_model(there: Path, here: Path, recipe: str) -> None:
    """The model with as many positions as the recipe says that the real one was made for."""
    (parent,) = re.findall(r"parents/models/.*\.toml", (READY / f"{recipe}.toml").read_text())
    made_for = re.findall(r"up to ([\d,]+) tokens", (READY / parent).read_text())[0]
    here.mkdir()
    for path in there.iterdir():
        (here / path.name).symlink_to(path)
    config = json.loads((there / "config.json").read_bytes())
    (here / "config.json").unlink()
    config["max_position_embeddings"] = int(made_for.replace(",", ""))
    (here / "config.json").write_text(json.dumps(config))


def targets(family: Family, recipe: str) -> Iterator[str]:
    """TurboMind weights where the engine has such a model; a template that LMDeploy cannot be told is left out."""
    if not family.turbomind:
        return
    yield 'export.targets=["hf","turbomind"]'
    yield f'export.turbomind.mode="{family.turbomind}"'
    if family.turbomind == "hf_direct":
        yield 'export.hf.dtype="bfloat16"'
    if not family.said:
        yield 'export.turbomind.chat_template="base"'


def recipe_targets(recipe: str) -> list[str]:
    """Those of the recipe itself."""
    (model,) = re.findall(r"parents/models/.*\.toml", (READY / f"{recipe}.toml").read_text())
    return re.findall(r'"(\w+)"', "".join(re.findall(r"targets = (.*)", (READY / model).read_text())))


def chats_of(recipe: str) -> bool:
    return "pretrain" not in recipe


def write_data(family: Family, folder: Path) -> list[list[int]]:
    """Conversations, texts and token files; returns the lines of the last, a token without loss negated."""
    talk = (SYSTEM, *TALK) if family.system else TALK
    chats = [[{"role": role, "content": said.replace("№", str(n))} for role, said in talk] for n in range(CHATS)]
    write(folder / "data" / "chats", [{"messages": chat} for chat in chats])
    write(folder / "data" / "text", [{"text": TEXT.replace("№", str(n)).strip()} for n in range(TEXTS)])
    rows = [[(-1 if at < 3 else 1) * (9 + (n * at) % 200) for at in range(40)] for n in range(LINES)]
    (folder / "data" / "tokens").mkdir()
    write_ftdp(folder / "data" / "tokens", [line(row) for row in rows], [len(row) for row in rows])
    return rows


def write(folder: Path, records: list[dict[str, Any]]) -> None:
    folder.mkdir(parents=True)
    (folder / "data.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")


def segments(pack: Pack) -> Iterator[tuple[int, int, int]]:
    """Record, first and last token of each sample of a pack."""
    for number, record in enumerate(pack.record.tolist()):
        yield record, int(pack.segments[number]), int(pack.segments[number + 1])


def expected(family: Family, recipe: str) -> str:
    """What every sample of the recipe's data becomes."""
    if chats_of(recipe):
        return family.chat
    return f"{family.bos if family.adds_bos else ''}{' ' * family.spaced}{TEXT.strip()}{family.eos}"


def check_texts(shards: ShardReader, texts: TokenText, text: str) -> None:
    """Every sample is as written out by hand, and of plain text all is trained but its first token."""
    seen = set()
    for pack in shards:
        for record, begin, end in segments(pack):
            pieces, loss = texts.of(pack.tokens[begin:end]), pack.loss[begin:end].tolist()
            if "⟦" in text:
                marks = [("⟦" if now else "⟧") * (now != was) for was, now in zip([False, *loss], loss, strict=False)]
                found = "".join(mark + piece for mark, piece in zip(marks, pieces, strict=True)) + "⟧" * loss[-1]
            else:
                found = "".join(pieces)
                assert loss == [False, *[True] * (len(loss) - 1)]
            assert found == text.replace("№", str(record))
            seen.add(record)
    assert seen == set(range(CHATS if "⟦" in text else TEXTS))


def check_tokens(shards: ShardReader, rows: list[list[int]]) -> None:
    """Every stretch of a pack is of the line it says, and what it trains is what that line does not negate."""
    for pack in shards:
        for (record, begin, end), start in zip(segments(pack), pack.start.tolist(), strict=True):
            line_ = np.array(rows[record][start : start + end - begin])
            assert pack.tokens[begin:end].tolist() == np.abs(line_).tolist()
            assert pack.loss[begin:end].tolist()[1:] == (line_ > 0).tolist()[1:]


def check_export(folder: Path, probes: Probes, *, chats: bool) -> None:
    """Plain Transformers loads it whole, and its tokenizer gives the prompts that were trained on."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not any(info.values()), info
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert model(**tokenizer("The fox", return_tensors="pt", return_token_type_ids=False)).logits.isfinite().all()
    assert probes.difference(tokenizer, folder) is None
    if chats:
        assert len(probes.probes) >= 2
        stops = model.generation_config.eos_token_id
        assert set(probes.stop_ids) <= set(stops if isinstance(stops, list) else [stops])
