"""What a name given by people may be: it stands in tables, pages, figures and names of files."""

from __future__ import annotations

from kerple_eval.types import UserError

LONGEST = 100  # characters


def is_text(name: str) -> bool:
    """Whether a name can be written as UTF-8: a file may be named by other bytes, as Python's surrogates."""
    return not any("\ud800" <= character <= "\udfff" for character in name)


def check_label(label: str, what: str, advice: str = "give it another name") -> None:
    """Refuse a label that is no plain text of one line.

    Allowed are 1 to 100 printable characters (Python's ``str.isprintable``: no line breaks, control, format
    or lone surrogate characters) without a space at either end, and neither ``.`` nor ``..``, which would
    name a folder. ``what`` names the label in the message; ``advice`` says what would be right.

    Raises:
        UserError: the label is not allowed.
    """
    if not label:
        reason = "is empty"
    elif len(label) > LONGEST:
        reason = f"has {len(label):,} characters, more than {LONGEST}"
    elif label in (".", ".."):
        reason = "is the name of a folder"
    elif not label.isprintable():
        character = next(c for c in label if not c.isprintable())
        reason = f"holds a character that cannot be printed (U+{ord(character):04X})"
    elif label != label.strip():
        reason = "begins or ends with a space"
    else:
        return
    from kerple_eval.support.readers import quoted  # noqa: PLC0415 - imports yaml, and help must be quick

    raise UserError(f"{what} {quoted(label)} {reason}; {advice}")
