"""Data that came tokenized, held against the template it should be in: where its answers are, what its masks train.

Nothing is rendered here, so masks are what somebody else made of them. The usual faults are looked for: a mask that is
a token late, questions that are trained, ends that are not, BOS twice.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt

from pipelines.findings import Finding
from prep.answers import answers_behind, mask_faults
from prep.conversation import Conversation, Message, RecordError
from prep.store import LOSS_BIT
from prep.template import Template
from prep.tokenizer import Tokenizer

Marked = npt.NDArray[np.uint32]
"""Token ids of one sample, bit 31 set where the token carries loss."""

_CERTAIN = {"mask-late", "mask-early", "mask-empty", "two-bos"}
"""What nobody means, if every sample has it; the rest can be meant, and is warned of."""

_SAID: Mapping[str, str] = {
    "mask-empty": "nothing is trained",
    "mask-full": "everything is trained, questions too",
    "mask-late": "the mask is one token late: was it shifted when it was made? Here it marks the targets themselves",
    "mask-early": "the mask is one token early: was it shifted for the loss? Here it marks the targets themselves",
    "answer-untrained": "an answer is not trained",
    "answer-start-untrained": "the beginning of an answer is not trained",
    "answer-part-untrained": "a part of an answer is not trained",
    "end-untrained": "the token that ends an answer is not trained, so a model does not learn to stop",
    "end-missing": "an answer does not end with a token that stops generation",
    "header-trained": "what stands before an answer is trained",
    "after-end-trained": "what stands behind an answer's end is trained",
    "prompt-trained": "text that is no answer is trained",
    "end-trained": "the end of an answer is trained",
    "answer-trained": "an answer is trained",
    "two-bos": "BOS stands twice at the beginning",
    "bos-within": "BOS stands within a sample, and nothing ended before it",
    "no-bos": "samples begin without BOS, which the tokenizer puts before a text",
}


def check_tokens(
    samples: Sequence[tuple[int, Marked]], tokenizer: Tokenizer, template: Template | None, where: str
) -> list[Finding]:
    """What is wrong with samples that came tokenized.

    Args:
        samples: with their record numbers, from 0.
        template: what conversations among them should look like; None where they are text.
        where: begins the message, up to the record number.
    Returns:
        Each kind of finding once, with how many samples have it and the first that does.
    """
    header = _header(template) if template is not None else []
    stops = frozenset(template.stop_tokens if template is not None else ())
    counts: Counter[str] = Counter()
    first: dict[str, int] = {}
    conversations = 0
    for record, marked in samples:
        tokens = (marked & ~LOSS_BIT).tolist()
        loss = (marked & LOSS_BIT) != 0
        conversations += bool(header and answers_behind(tokens, header, stops))
        for kind in sorted(set(_faults(tokens, loss, header, stops, tokenizer))):
            counts[kind] += 1
            first.setdefault(kind, record)
    found = [
        _finding(kind, count, len(samples), f"{where}:{first[kind] + 1}") for kind, count in sorted(counts.items())
    ]
    if header and samples and not conversations:
        found.append(
            Finding.warning(
                "no-answers",
                f"{where}: none of {len(samples)} samples has an answer as the template begins one; were they "
                "tokenized with another template or tokenizer, or are they text?",
            )
        )
    return found


def _faults(
    tokens: Sequence[int],
    loss: npt.NDArray[np.bool_],
    header: Sequence[int],
    stops: frozenset[int],
    tokenizer: Tokenizer,
) -> Iterator[str]:
    answers = answers_behind(tokens, header, stops) if header else []
    if answers:
        yield from (fault.kind for fault in mask_faults(loss, answers, end_of_turn=True))
        yield from ("end-missing" for answer in answers if not answer.is_closed)
    elif not loss[1:].any():
        yield "mask-empty"
    bos = tokenizer.bos_id
    if bos is None:
        return
    places = [at for at, token in enumerate(tokens) if token == bos]
    ends = {*stops, tokenizer.eos_id}
    for before, behind in pairwise(places):
        if bos not in ends and not any(token in ends for token in tokens[before:behind]):
            yield "two-bos" if behind == before + 1 else "bos-within"
    if tokenizer.adds_bos and not places:
        yield "no-bos"


def _finding(kind: str, count: int, samples: int, place: str) -> Finding:
    share = "all" if count == samples else f"{count}"
    text = f"{place}: {_SAID[kind]}, in {share} of the {samples} samples looked at; if it is not meant, make them again"
    made = Finding if kind in _CERTAIN and count == samples else Finding.warning
    return made("tokens-" + kind, text)


def _header(template: Template) -> list[int]:
    """The tokens before every answer: how prompts end, whatever was asked."""
    try:
        prompts = [template.prompt(Conversation((Message("user", text),)))[::-1] for text in ("What is it?", "请说 ok")]
    except RecordError:
        return []
    same = next((at for at, (a, b) in enumerate(zip(*prompts, strict=False)) if a != b), 0)
    return prompts[0][:same][::-1]
