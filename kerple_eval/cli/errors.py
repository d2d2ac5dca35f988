"""What a user has wrong on the command line: one line on stderr and exit status 2."""

from __future__ import annotations

import math
import sys
from typing import Any

import click
from click.exceptions import NoArgsIsHelpError

from kerple_eval.support.interrupts import STOPPED
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError


class Number(click.FloatRange):
    """A finite number within bounds; click's own type takes nan, which no bound holds back."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number


def filled(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A place that is named: an empty word (a shell variable unset) would be the folder at hand."""
    if value == "":
        raise click.BadParameter("is empty.", context, option)
    return value


def typed_words() -> tuple[str, ...]:
    """The command as it was typed, for the record."""
    return ("kerple-eval", *sys.argv[1:])


class Group(click.Group):
    """Every mistake of the user's is one line and exit status 2, with did-you-mean where it helps."""

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        status: Any = 0
        try:
            status = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except NoArgsIsHelpError as error:
            error.show()
            status = 2
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            where = f" (see {context.command_path} --help)" if context else ""
            click.echo(f"error: {' '.join(error.format_message().split())}{where}", err=True)
            status = 2
        except UserError as error:
            click.echo(f"error: {' '.join(str(error).split())}", err=True)
            status = 2
        except (KeyboardInterrupt, click.Abort):
            click.echo(STOPPED, err=True)
            status = 130
        if standalone_mode:
            sys.exit(status)
        return status

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)
