"""The `packtrain` command: its options, its log, and the commands it is made of."""

import logging
import sys

import click

from pipelines.commands import beginnings, check, export, machine, order, plan, prep, preview, results, train
from pipelines.commands.group import Commands
from pipelines.secret_text import show_exception
from pipelines.terminal import LogLines


@click.group(cls=Commands, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(package_name="packtrain")
@click.option("--verbose", is_flag=True, help="Log what libraries say as well.")
@click.option("--local_rank", type=int, hidden=True, expose_value=False)  # DeepSpeed adds it; LOCAL_RANK says the same
def main(verbose: bool) -> None:
    """Fine-tune large language models in three stages: prep, train, export.

    Everything about a run stands in one TOML file; flags only say how to run it now.
    """
    sys.excepthook = show_exception
    logging.basicConfig(level=logging.WARNING, format="%(message)s", handlers=[LogLines()])
    for name in ("pipelines", "prep", "train", "export"):
        logging.getLogger(name).setLevel(logging.DEBUG if verbose else logging.INFO)
    if not verbose:  # PEFT imports it for every adapter, and it tells of an operator for 4 bits that it did not find
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)


for command in (
    *(prep.prep, train.train, export.export, order.order, check.check, preview.preview, plan.plan),
    *(results.verify, results.report, results.chat, beginnings.recipes, beginnings.init, beginnings.migrate),
    *(machine.env, machine.fetch, machine.completion),
):
    main.add_command(command)
