"""What the commands' options share: their grammar, types, and the options that several commands have."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any, TypeVar

import click

from kerple_eval.support.labels import is_text
from kerple_eval.support.specs import whole_number

F = TypeVar("F", bound=Callable[..., Any])
TRACEBACK = "Before an error's line, print where in the code it arose."


def _print_traceback(context: click.Context, option: click.Parameter, value: bool) -> None:
    if value:
        context.find_root().params["traceback"] = True


class Command(click.Command):
    """A command that refuses words that are not UTF-8, and options given twice (unless they collect).

    ``--traceback`` of the whole command is taken after a command's name too.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        if not isinstance(self, click.Group):
            flag = click.Option(
                ["--traceback"], is_flag=True, help=TRACEBACK, expose_value=False, callback=_print_traceback
            )
            self.params.append(flag)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        for word in args:
            if not is_text(word):  # the record of a run holds the words of its command
                raise click.UsageError(f"{word[:80]!r} is not UTF-8; rename the file or folder", ctx)
        order = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option, count in Counter(order).items():
            repeatable = not isinstance(option, click.Option) or option.multiple or option.is_eager
            if count > 1 and not repeatable:
                raise click.UsageError(f"{option.opts[0]} is given {count} times; give it once", ctx)
        return super().parse_args(ctx, args)


class FiniteNumber(click.FloatRange):
    """A finite number within bounds; click's own type accepts nan, which no bound refuses."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        number: float = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{number} is not a finite number.", param, ctx)
        return number

    def _describe_range(self) -> str:
        return "" if self.min is None and self.max is None else super()._describe_range()


class Tokens(click.IntRange):
    """A number of tokens, at least ``least``: ``512`` or ``16k``."""

    def __init__(self, least: int = 1) -> None:
        super().__init__(min=least)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        number = whole_number(value) if isinstance(value, str) else value
        if number is None:
            self.fail(f"{value!r} is not a number of tokens, as 512 or 16k.", param, ctx)
        tokens: int = super().convert(number, param, ctx)
        return tokens


def not_empty(context: click.Context, option: click.Parameter, value: str | None) -> str | None:
    """A path that is not empty: an unset shell variable would otherwise name the current folder."""
    if value == "":
        raise click.BadParameter("is empty.", context, option)
    return value


def lengths(context: click.Context, option: click.Parameter, value: str | None) -> tuple[int, ...]:
    """As ``512,16k``; none where it is not given."""
    from kerple_eval.evaluation.request import parse_lengths  # noqa: PLC0415

    return () if value is None else tuple(parse_lengths(value))


def at_least(least: int) -> click.IntRange:
    return click.IntRange(min=least)


def out(text: str, **more: Any) -> Callable[[F], F]:
    """``--out PATH``."""
    return click.option("--out", callback=not_empty, metavar="PATH", help=text, **({"required": True} | more))


folders = click.argument("folders", nargs=-1, required=True, metavar="DIR...")
only_models = click.option(
    "--model", "models", multiple=True, metavar="MODEL", help="Only this model; may be given several times."
)
only_lengths = click.option(
    "--length", "lengths", callback=lengths, metavar="LENGTHS", help="Only these lengths, as in 512,16k."
)
table_format = click.option(
    "--format", "style", default="text", show_default=True, metavar="FORMAT",
    help="text, markdown, latex or csv.",
)  # fmt: skip

_STATISTICS = (
    click.option("--task", metavar="NAME", help="Only this task."),
    click.option("--protocol", metavar="NAME", help="Only this protocol, written as in the table."),
    table_format,
    click.option(
        "--level", type=FiniteNumber(0, 1, min_open=True, max_open=True), default=0.95, metavar="P",
        show_default=True, help="Confidence level of the intervals.",
    ),
    click.option(
        "--seed", type=at_least(0), default=0, metavar="N", show_default=True,
        help="Seed of the bootstrap's documents and of the permutation test's signs.",
    ),
)  # fmt: skip


def statistics(command: F) -> F:
    """The options of a command that computes intervals."""
    for option in reversed(_STATISTICS):
        command = option(command)
    return command
