"""What the first steps train on, shown as text before they are taken."""

import logging
import shutil
import sys

from pipelines.preview import COLUMNS, Preview
from pipelines.terminal import wants_colour
from train.batches import Batches
from train.plan import Plan

log = logging.getLogger(__name__)


def show_samples(plan: Plan, batches: Batches, first: int) -> None:
    """Show the packs that training goes on with after `first` steps, as many as train.log.show_samples says."""
    count, size = plan.train.log.show_samples, plan.train.global_batch_size
    positions = range(first * size, min(first * size + count, plan.total_steps * size))
    if not positions:
        return
    width = shutil.get_terminal_size((COLUMNS, 0)).columns if sys.stderr.isatty() else COLUMNS
    files, tokenizer = plan.prep.facts.get("files", ()), plan.shards / "tokenizer"
    preview = Preview(files, tokenizer, colour=wants_colour(sys.stderr), width=width)
    for number, position in enumerate(positions, 1):
        index = batches.index(position)
        title = f"sample {number} of {len(positions)}, pack {index}"  # as packtrain preview --pack takes it
        log.info("%s", preview.of(batches.packs[index], title))
