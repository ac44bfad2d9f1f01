"""A group of commands: a user's error as lines with an exit code, and a command of its own where none is named."""

from typing import Any

import click
from click.shell_completion import CompletionItem

from pipelines.errors import PacktrainError

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
        for line in str(error).splitlines():
            click.secho(line, fg="red", err=True)
        ctx.exit(error.exit_code)


class _UnnamedContext(click.Context):
    """A context that usage and errors spell as its group: `packtrain prep`, where `prep run` is meant."""

    @property
    def command_path(self) -> str:
        assert self.parent is not None
        return self.parent.command_path


class Unnamed(click.Command):
    """The command of a group that is meant where none is named."""

    context_class = _UnnamedContext


class WithDefault(Commands):
    """A group that takes a FILE where no command of its own is named: `prep FILE` is `prep run FILE`."""

    default = "run"

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if ctx.resilient_parsing and not args:  # the shell asks what can come here: a command of this group, or a FILE
            return super().parse_args(ctx, args)
        if first not in self.commands and first not in ctx.help_option_names:
            args = [self.default, *args]
        return super().parse_args(ctx, args)

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        default = self.commands[self.default]
        with default.make_context(ctx.info_name, [], parent=ctx, resilient_parsing=True) as inner:
            if incomplete.startswith("-"):
                return default.shell_complete(inner, incomplete)
            file = next(one for one in default.params if isinstance(one, click.Argument))
            # Files come first: in bash they are offered where nothing follows them.
            return [*file.shell_complete(inner, incomplete), *super().shell_complete(ctx, incomplete)]

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "[OPTIONS] FILE  |  COMMAND ...")

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        self.commands[self.default].format_options(ctx, formatter)
        self.format_commands(ctx, formatter)
