"""A group of commands: a user's error as lines with an exit code, and a command of its own where none is named."""

from typing import Any

import click

from pipelines.errors import PacktrainError
from pipelines.secret_text import without_secrets

INTERRUPTED = 75


class Commands(click.Group):
    """A group whose commands end a user's error with its lines and its exit code, without a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PacktrainError as error:
            self._end(ctx, error)
        except OSError as error:
            from pipelines.failing_disk import storage_error

            found = storage_error(error)
            if found is None:
                raise
            self._end(ctx, found)
        except KeyboardInterrupt:
            click.secho("interrupted; the same command continues", fg="red", err=True)
            ctx.exit(INTERRUPTED)

    @staticmethod
    def _end(ctx: click.Context, error: PacktrainError) -> None:
        for line in without_secrets(str(error)).splitlines():
            click.secho(line, fg="red", err=True)
        ctx.exit(error.exit_code)


class WithDefault(Commands):
    """A group that takes a FILE where no command of its own is named: `prep FILE` is `prep run FILE`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] FILE  |  COMMAND ...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[self.default].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
