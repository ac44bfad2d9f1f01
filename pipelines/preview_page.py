"""Packs as one HTML page that stands by itself: nothing is fetched, and nothing of the data is markup."""

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from pipelines.terminal import printable

_NEWLINE = "\u21b5\n"

_HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --back: #fff; --fore: #222; --dim: #777; --line: #ddd; --on: #c9f0d0; --on2: #b3e6bd;
  --off: transparent; --off2: #f2f2f2; --mark: #ffb300 }}
@media (prefers-color-scheme: dark) {{ :root {{ --back: #161616; --fore: #ddd; --dim: #999; --line: #383838;
  --on: #1d4a28; --on2: #265c33; --off2: #222 }} }}
body {{ background: var(--back); color: var(--fore); font: 15px/1.5 system-ui, sans-serif; margin: 1.5em auto;
  max-width: 72em; padding: 0 1em }}
h1 {{ font-size: 1.3em }} h2 {{ font-size: 1.1em; margin: 1.6em 0 .3em }}
p, h3 {{ color: var(--dim); font-size: .9em; font-weight: normal; margin: .3em 0 }}
section {{ border-left: 3px solid var(--line); margin: .6em 0; padding: 0 .8em }}
pre {{ font: 13px/1.6 ui-monospace, monospace; margin: .3em 0; overflow-wrap: anywhere; white-space: pre-wrap }}
i, b {{ font-style: normal; font-weight: normal; border-radius: 2px }}
i:nth-of-type(even) {{ background: var(--off2) }} b {{ background: var(--on) }} b:nth-of-type(even) {{
  background: var(--on2) }}
.d {{ border-left: 2px solid #d33; margin-left: 1px; padding-left: 1px }}
.m {{ outline: 2px solid var(--mark) }}
#about {{ background: var(--back); border-top: 1px solid var(--line); bottom: 0; color: var(--dim); font-size: .85em;
  min-height: 1.5em; padding: .3em 0; position: sticky }}
</style></head><body>
<h1>{title}</h1>
<p><b>Green</b> is what is trained. Shades tell tokens apart, a red line is where attention begins anew, a section is
one sample. Packs and tokens count from 0, records from 1.</p>
"""

_TAIL = """<div id="about">Point at a token.</div>
<script>
const about = document.getElementById("about");
document.addEventListener("mouseover", event => {
  const token = event.target.closest("pre i, pre b");
  if (!token) return;
  const sample = token.closest("section"), own = [...token.parentElement.children].indexOf(token);
  const place = own + Number(sample.dataset.begin);
  about.textContent = `token ${place} of the pack, token ${own + Number(sample.dataset.first)} of ` +
    `${sample.dataset.origin}, id ${token.dataset.id}, ${token.tagName === "B" ? "trained" : "not trained"}`;
});
const marked = document.querySelector(".m");
if (marked) marked.scrollIntoView({block: "center"});
</script></body></html>
"""


def page(title: str, packs: Sequence[Mapping[str, Any]]) -> str:
    """One page of packs as `pack_facts` gives them."""
    return "".join([_HEAD.format(title=_safe(title)), *(line for pack in packs for line in _pack(pack)), _TAIL])


def _pack(pack: Mapping[str, Any]) -> Iterator[str]:
    count = len(pack["samples"])
    yield f"<h2>{_safe(pack['title'])}</h2>\n<p>{pack['tokens']:,} tokens, {pack['trained']:,} trained, in {count:,} "
    yield f"sample{'' if count == 1 else 's'}"
    yield f"; token ids, as there is {_safe(pack['why_no_text'])}</p>\n" if pack["why_no_text"] else "</p>\n"
    for sample in pack["samples"]:
        yield from _sample(sample, pack["marked"])


def _sample(sample: Mapping[str, Any], marked: int | None) -> Iterator[str]:
    begin, end = sample["begin"], sample["end"]
    origin = _safe(f"{sample['source']}/{sample['path']}:{sample['record']}".removeprefix("/"))
    trained = {at for first, last in sample["trained"] for at in range(first, last)}
    documents = set(sample["documents"])
    yield f'<section data-begin="{begin}" data-first="{sample["sample_token"]}" data-origin="{origin}">\n'
    cut = f", from its token {sample['sample_token']:,} on" if sample["sample_token"] else ""
    joined = "" if begin in documents else "; attends to what is before it"
    yield f"<h3>{origin}{cut}: tokens {begin:,}:{end:,}, {len(trained):,} trained{joined}</h3>\n<pre>"
    texts = sample["texts"] or [f"{id_} " for id_ in sample["tokens"]]
    for at, (id_, text) in enumerate(zip(sample["tokens"], texts, strict=True), begin):
        name = "b" if at in trained else "i"
        marks = "d" * (at in documents and at > begin) + " m" * (at == marked)
        kind = f' class="{marks.strip()}"' if marks else ""
        yield f'<{name}{kind} data-id="{id_}">{_safe(text)}</{name}>'
    yield "</pre></section>\n"


def _safe(text: str) -> str:
    """Text that is no markup, in which no character hides or turns the text around."""
    return escape(printable(text, keep="\n")).replace("\n", _NEWLINE)
