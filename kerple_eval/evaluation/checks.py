"""Whether the parts of a request go together; every check raises UserError, with what would be right."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from kerple_eval.data.synthetic.texts import is_synthetic
from kerple_eval.data.task import parse_task
from kerple_eval.models.decoder.backends import ATTENTION_CHOICES
from kerple_eval.protocols.base import Protocol
from kerple_eval.support.registry import unknown
from kerple_eval.types import BosRule, UserError

if TYPE_CHECKING:
    import torch

    from kerple_eval.evaluation.plan import ProtocolPlan
    from kerple_eval.evaluation.request import RunRequest
    from kerple_eval.models.base import Checkpoint


def choose_attention(
    checkpoints: Sequence[Checkpoint],
    labels: Sequence[str],
    attention: str,
    device: torch.device,
    dtype: torch.dtype,
) -> None:
    """Choose every model's attention backend; one named by the user is used or refused."""
    if attention not in ATTENTION_CHOICES:
        raise unknown("attention", attention, ATTENTION_CHOICES)
    for label, checkpoint in zip(labels, checkpoints, strict=True):
        try:
            checkpoint.set_attention(attention, device, dtype)
        except UserError as error:
            raise UserError(f"model {label}: {error}") from None


def check_window_marker(text: str, plan: ProtocolPlan) -> None:
    """The protocol must allow windows of L - 1 tokens of text after a first-token marker."""
    why = f"{text}: bos: window takes one of the L tokens of each window"
    if plan.protocol.draws_samples:
        raise UserError(f"{why}, and {plan.name} draws windows of L tokens of text; use another bos")
    if min(plan.lengths) < 2:
        raise UserError(f"{why}, which leaves none at length 1; use longer lengths")
    try:
        plan.protocol.check([length - 1 for length in plan.lengths])
    except UserError as error:
        raise UserError(f"{why}: {error}") from None


def check_drawn_samples(plans: Sequence[ProtocolPlan], request: RunRequest) -> None:
    """A protocol that draws its own samples stands alone, without options that choose documents."""
    names = [plan.name for plan in plans if plan.protocol.draws_samples]
    for plan in plans:
        if not plan.protocol.draws_samples:
            raise UserError(
                f"protocol {names[0]} draws its own samples and cannot share a run with {plan.name}: "
                "run each of them with another --out"
            )
    for option in _given(request, "documents", "keep_short", "max_tokens", "seed", "precision"):
        raise UserError(
            f"--{option} has no meaning for protocol {names[0]}, which draws from every document"
            + (" by its own seed=" if option == "seed" else "")
        )


def _given(request: RunRequest, *options: str) -> list[str]:
    """Those of ``options`` that the request sets, as on the command line; a seed of 0 is set."""
    return [
        name.replace("_", "-")
        for name in options
        if getattr(request, name) is not None and getattr(request, name) is not False
    ]


def default_protocols(tasks: Sequence[str]) -> tuple[str, ...]:
    """The protocol of a run that names none: answer where every task is synthetic, else full-context."""
    synthetic = [is_synthetic(parse_task(task)) for task in tasks]
    return ("answer",) if synthetic and all(synthetic) else ("full-context",)


def check_answers(plans: Sequence[ProtocolPlan], request: RunRequest) -> None:
    """Synthetic tasks and the protocol that scores their answers go together, and with nothing else."""
    answers = [plan.name for plan in plans if plan.protocol.scores_answers]
    others = [plan.name for plan in plans if not plan.protocol.scores_answers]
    synthetic = [task for task in request.tasks if is_synthetic(parse_task(task))]
    texts = [task for task in request.tasks if task not in synthetic]
    texts += ["text of your own"] if request.text or request.tokens else []
    if synthetic and texts:
        raise UserError(
            f"task {synthetic[0]} cannot share a run with {texts[0]}: run each of them with another --out"
        )
    if synthetic and others:
        raise UserError(
            f"task {synthetic[0]} is scored by protocol answer alone, not {others[0]}; leave it out"
        )
    if answers and not synthetic and texts:
        raise UserError(f"protocol {answers[0]}: {texts[0]} has no answer; it is for passkey, needle, ...")
    if not synthetic:
        return
    for option in _given(request, "documents", "keep_short", "max_tokens", "precision"):
        right = f"use {synthetic[0].partition(':')[0]}:samples=N" if option == "documents" else "leave it out"
        raise UserError(
            f"--{option} has no meaning for task {synthetic[0]}, which is generated for each length; {right}"
        )


def check_bos(bos: BosRule | None, plans: Sequence[ProtocolPlan]) -> None:
    """A request that gives a first-token rule needs a protocol that has none of its own."""
    if bos is not None and all(plan.protocol.first_token for plan in plans):
        raise UserError(
            f"--bos {bos} has no meaning for protocol {plans[0].name}, which has its own first-token rule"
        )


def check_precision(
    precision: str | None, divergence_from: str | None, plans: Sequence[ProtocolPlan]
) -> None:
    """``--precision`` needs protocols whose loss is the mean over targets, and cells of losses alone."""
    if precision is not None and divergence_from is not None:
        raise UserError(
            "--divergence-from has no meaning with --precision, which adds documents to a cell; leave one out"
        )
    for plan in plans:
        if precision is not None and plan.protocol.reduction != Protocol.reduction:
            raise UserError(
                f"--precision has no meaning for protocol {plan.name}, whose loss is another mean "
                f"({plan.protocol.reduction}); use a sound protocol"
            )
