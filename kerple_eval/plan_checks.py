"""What protocols refuse of the rest of a command; UserError says what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, get_args

from kerple_eval.protocols.base import Protocol
from kerple_eval.types import BosRule, UserError

if TYPE_CHECKING:
    from kerple_eval.plan import ProtocolPlan


def check_shorter(text: str, plan: ProtocolPlan) -> None:
    """Whether the protocol can serve windows that give one of their L tokens to a marker."""
    why = f"{text}: bos: window takes one of the L tokens of each window"
    if plan.protocol.draws_samples:
        raise UserError(f"{why}, and {plan.name} draws its windows as they stand; use another bos")
    if min(plan.lengths) < 2:
        raise UserError(f"{why}, which leaves none at length 1; use longer lengths")
    try:
        plan.protocol.check([length - 1 for length in plan.lengths])
    except UserError as error:
        raise UserError(f"{why}: {error}") from None


def refuse_beside_a_draw(plans: Sequence[ProtocolPlan], options: dict[str, Any]) -> None:
    """What has no meaning beside a protocol that draws its samples from every document."""
    names = [plan.name for plan in plans if plan.protocol.draws_samples]
    for plan in plans:
        if not plan.protocol.draws_samples:
            raise UserError(
                f"protocol {names[0]} draws its own samples and cannot share a run with {plan.name}: "
                "give each an --out of its own"
            )
    for option, value in options.items():
        if value is not None and value is not False:  # a seed of 0 was given
            raise UserError(
                f"--{option} has no meaning for protocol {names[0]}, which draws from every document"
                + (" by its own seed=" if option == "seed" else "")
            )


def check_bos(bos: BosRule | None, plans: Sequence[ProtocolPlan]) -> None:
    """Whether ``--bos`` is a rule, and some protocol leaves it to the run."""
    if bos is None:
        return
    if bos not in get_args(BosRule):
        raise UserError(f"unknown --bos {bos!r}: available: {', '.join(get_args(BosRule))}")
    if all(plan.protocol.first_token for plan in plans):
        raise UserError(f"--bos {bos} has no meaning for protocol {plans[0].name}, whose rule is its own")


def check_precision(precision: str | None, plans: Sequence[ProtocolPlan]) -> None:
    """Precision is of means over targets."""
    for plan in plans:
        if precision is not None and plan.protocol.reduction != Protocol.reduction:
            raise UserError(
                f"--precision has no meaning for protocol {plan.name}, whose loss is another mean "
                f"({plan.protocol.reduction}); use a sound protocol"
            )
