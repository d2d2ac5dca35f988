"""What a user has wrong on the command line: one line on stderr and exit status 2."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO, cast

import click
from click.exceptions import NoArgsIsHelpError

from kerple_eval.cli.parameters import Command
from kerple_eval.support.interrupts import STOPPED
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError


def typed_words() -> tuple[str, ...]:
    """The command as it was typed, for the record."""
    return ("kerple-eval", *sys.argv[1:])


class BrokenOffError(Exception):
    """The command could not go on after it had computed something (a full disk, say): exit status 1."""


class OutputError(Exception):
    """Standard output cannot be written; ``closed``: its reader has gone, as of ``| head -1``."""

    def __init__(self, error: OSError) -> None:
        super().__init__(f"standard output cannot be written: {error.strerror or error}")
        self.closed = isinstance(error, BrokenPipeError)


class _Output:
    """Standard output whose own errors are told apart from those of files."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            raise OutputError(error) from None

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            raise OutputError(error) from None


@contextmanager
def _output() -> Iterator[None]:
    """Inside, a failing standard output raises :class:`OutputError`, at the latest on leaving."""
    stream = sys.stdout
    if stream is None:  # closed before the program began
        yield
        return
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(errors="backslashreplace")  # a path may hold bytes that are no text
    sys.stdout = cast(TextIO, _Output(stream))
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except OutputError:
        # What is left in the buffer would fail again when the interpreter ends.
        with suppress(OSError, ValueError), Path(os.devnull).open("w") as nowhere:
            os.dup2(nowhere.fileno(), stream.fileno())
        raise
    finally:
        sys.stdout = stream


def is_terminal() -> bool:
    """Whether standard output is read on a terminal."""
    return sys.stdout is not None and sys.stdout.isatty()


def _print_error(line: str) -> None:
    """One line on standard error, from rank 0 alone where torchrun started several.

    What cannot be printed (an escape sequence in a file's name) is shown escaped.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ and os.environ.get("RANK", "0") != "0":
        return
    shown = "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(line.split()))
    with suppress(OSError):
        click.echo(shown, err=True)


class CommandGroup(Command, click.Group):
    """The whole command: a user's mistake is one line and exit status 2, with did-you-mean where it helps.

    ``sections``: the commands by heading, in the order of ``--help``.
    """

    command_class = Command

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **extra: Any) -> None:
        super().__init__(*args, **extra)
        self.sections = sections

    def main(self, *args: Any, standalone_mode: bool = True, **extra: Any) -> Any:
        status: Any = 0
        try:
            with _output():
                status = super().main(*args, standalone_mode=False, **extra)  # type: ignore[call-overload]
        except NoArgsIsHelpError as error:
            error.show()
            status = 2
        except click.ClickException as error:
            context = getattr(error, "ctx", None)
            where = f" (see {context.command_path} --help)" if context else ""
            _print_error(f"error: {error.format_message()}{where}")
            status = 2
        except UserError as error:
            _print_error(f"error: {error}")
            status = 2
        except BrokenOffError as error:
            _print_error(f"error: {error}")
            status = 1
        except OutputError as error:
            if not error.closed:
                _print_error(f"error: {error}")
            status = 1
        except (KeyboardInterrupt, click.Abort):
            _print_error(STOPPED)
            status = 130
        if standalone_mode:
            sys.exit(status)
        return status

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (UserError, BrokenOffError) as error:
            if ctx.params.get("traceback"):
                print_traceback(error)
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """By sections; no line is cut."""
        for section, names in self.sections.items():
            with formatter.section(section):
                formatter.write_dl([(name, self.commands[name].short_help or "") for name in names])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.commands and not args[0].startswith("-"):
            raise unknown("command", args[0], self.commands)
        return super().resolve_command(ctx, args)


def print_traceback(error: BaseException) -> None:
    """The whole traceback on standard error, with what ``raise ... from None`` hides."""
    cause: BaseException | None = error
    while cause is not None:
        cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__
    traceback.print_exception(error)
