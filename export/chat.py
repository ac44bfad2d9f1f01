"""`packtrain chat`: talk to an export or a checkpoint, with the template it was trained with."""

import sys
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from transformers import AutoTokenizer, TextStreamer

from export.adapter import load_described
from export.hf import Model
from export.language_model import load_folder, load_tensors
from export.model_config import stored_dtype
from export.source import Source
from export.turbomind.as_model import load_workspace
from export.turbomind.serve import ENGINE, HF
from pipelines.artifacts import Manifest
from pipelines.checkpoints import Checkpoint
from pipelines.errors import DataError
from pipelines.prompt import Prompts
from pipelines.template_process import TemplateFault

_HELP = "/reset forgets the conversation, /quit ends, Ctrl-C ends an answer."

Message = dict[str, str]


def chat(folder: Path, *, prompt: str | None = None, system: str = "", max_new_tokens: int = 256) -> None:
    """Answer what is typed, word by word, until /quit or the end of the input.

    Args:
        folder: an exported Hugging Face, adapter or TurboMind directory, a checkpoint, or a directory of exports.
        prompt: answer this alone and return.
        system: text of a system message before the conversation.
        max_new_tokens: of one answer.
    Raises:
        DataError: if there is nothing to talk to in `folder`.
    """
    speaker = Speaker(folder, max_new_tokens)
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    if prompt is not None:
        speaker.answer([*opening, {"role": "user", "content": prompt}])
        return
    converse(speaker.answer, opening)


def answer_once(folder: Path, prompt: str, *, system: str = "", max_new_tokens: int = 256) -> str:
    """The answer to one prompt, without printing it; arguments and errors are those of `chat`."""
    opening: list[Message] = [{"role": "system", "content": system}] if system else []
    return Speaker(folder, max_new_tokens).answer([*opening, {"role": "user", "content": prompt}], show=False)


def converse(answer: Callable[[list[Message]], str], opening: list[Message]) -> None:
    """Read turns from standard input and answer each with all that was said since the last /reset."""
    print(_HELP, file=sys.stderr)
    said = list(opening)
    while True:
        try:
            text = input("> ").strip()
        except (EOFError, KeyboardInterrupt):
            return
        if text == "/quit":
            return
        if text == "/reset":
            said = list(opening)
        elif text.startswith("/"):
            print(_HELP, file=sys.stderr)
        elif text:
            asked = [*said, {"role": "user", "content": text}]
            try:
                said = [*asked, {"role": "assistant", "content": answer(asked)}]
            except KeyboardInterrupt:  # of an answer that goes on for too long
                print("\ninterrupted; the question and its answer are forgotten", file=sys.stderr)


class Speaker:
    """A loaded model that answers conversations."""

    def __init__(self, folder: Path, max_new_tokens: int) -> None:
        self._model, self._tokenizer = _load(folder)
        self._max_new_tokens = max_new_tokens
        if self._tokenizer.chat_template is None:
            raise DataError(f"{folder}: has no chat template; it was not trained on conversations")
        self._folder = folder
        self._prompts = Prompts(self._tokenizer, f"{folder}: the chat template")

    def answer(self, messages: list[Message], *, show: bool = True) -> str:
        """The most likely answer without a special token, printed as it comes.

        Raises:
            DataError: if the chat template refuses the conversation, or takes too much.
        """
        try:
            text = self._prompts.text(messages)
        except TemplateFault as fault:
            raise DataError(
                f"{self._folder}: the chat template refuses the conversation: {fault.message}; say it otherwise, or "
                "without --system"
            ) from fault
        prompt = self._tokenizer(text, add_special_tokens=False, return_tensors="pt")
        streamer = TextStreamer(self._tokenizer, skip_prompt=True, skip_special_tokens=True) if show else None
        output = self._model.generate(
            **prompt,
            max_new_tokens=self._max_new_tokens,
            do_sample=False,
            temperature=None,
            top_k=None,
            top_p=None,
            streamer=streamer,
        )
        ids = output[0, prompt["input_ids"].shape[1] :]
        return str(self._tokenizer.decode(ids, skip_special_tokens=True)).strip()


def _load(folder: Path) -> tuple[Any, Any]:
    if (folder / "hf" / "config.json").is_file():
        folder = folder / "hf"
    elif (folder / "adapter" / "adapter_config.json").is_file():
        folder = folder / "adapter"
    elif (folder / "turbomind" / "triton_models").is_dir():
        folder = folder / "turbomind"
    elif (folder / ENGINE).is_file() and not (folder / "triton_models").is_dir():
        folder = (folder / HF).resolve()  # these files serve the hf export beside them
    manifest = Manifest.read(folder)
    if manifest is not None and manifest.kind != "checkpoint":
        manifest.verify(folder)
    if next(folder.rglob("*.py"), None):
        raise DataError(f"{folder}: comes with code of its own, which chat does not run; load it with Transformers")
    if (folder / "adapter_config.json").is_file():
        return load_described(folder), _tokenizer(folder)
    if (folder / "triton_models").is_dir():
        loaded = load_workspace(folder)
        loaded.generation_config = type(loaded.generation_config).from_pretrained(folder)
        return loaded, _tokenizer(folder)
    if (folder / "config.json").is_file():
        return load_folder(folder), _tokenizer(folder)
    if manifest is None or manifest.kind != "checkpoint":
        raise DataError(f"{folder}: neither an exported model nor a finished checkpoint, such as work/NAME/export/hf")
    return _load_checkpoint(Checkpoint(folder))


def _tokenizer(folder: Path) -> Any:
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (ValueError, OSError) as error:
        finding = str(error).strip().splitlines()[0]
        raise DataError(f"{folder}: its tokenizer cannot be loaded without running code ({finding})") from error


def _load_checkpoint(checkpoint: Source) -> tuple[Any, Any]:
    """What its export would load as, without writing the weights."""
    if checkpoint.adapter is not None:
        raise DataError(f"{checkpoint.folder}: holds an adapter alone; run `packtrain export`, then name what it wrote")
    checkpoint.verify()
    model = Model.of(checkpoint, stored_dtype(checkpoint.model))
    tensors = ((name, model.weights.tensor(name)) for name in model.weights.shapes)
    loaded = load_tensors(model.config, tensors, model.weights.dtype, str(checkpoint.folder))
    with TemporaryDirectory() as files:
        model.write_files(Path(files))
        tokenizer = _tokenizer(Path(files))
        loaded.generation_config = type(loaded.generation_config).from_pretrained(files)
    return loaded, tokenizer
