"""From a request to a plan: everything is resolved and checked before the first cell. Loads no weights."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace

from kerple_eval.data.first_tokens import tokenize_by_rules
from kerple_eval.data.opening import own_text, own_tokens, task_text
from kerple_eval.data.synthetic.texts import is_synthetic, synthetic_text
from kerple_eval.data.task import parse_task
from kerple_eval.data.texts import (
    DocumentSelection,
    TextSource,
    TokenizedText,
    check_vocabulary,
    tokens_hash,
)
from kerple_eval.data.tokenizer import ModelTokens
from kerple_eval.evaluation.checks import (
    check_answers,
    check_bos,
    check_drawn_samples,
    check_precision,
    check_window_marker,
    default_protocols,
)
from kerple_eval.evaluation.opening import open_checkpoint, parsed
from kerple_eval.evaluation.pieces import plan_pieces
from kerple_eval.evaluation.plan import CellPlan, PlannedModel, ProtocolPlan, RunPlan
from kerple_eval.evaluation.reference import plan_reference
from kerple_eval.evaluation.request import RunRequest
from kerple_eval.evaluation.stopping_plan import plan_looks
from kerple_eval.models.devices import DTYPES, resolve_device
from kerple_eval.models.open import label_models
from kerple_eval.protocols.base import Protocol
from kerple_eval.protocols.catalogue import make_protocol
from kerple_eval.records.columns import MOST_WINDOWS
from kerple_eval.records.specification import ProtocolRecord, Provenance, RunSpecification
from kerple_eval.support.labels import check_label
from kerple_eval.types import UserError

_CAPPED = re.compile(r"(?P<spec>.+)@(?P<longest>[0-9]+)")


def parse_protocol(text: str, lengths: Sequence[int]) -> ProtocolPlan:
    """``NAME:key=value``, optionally ``@N`` after it: only the run's lengths up to N."""
    wanted = sorted(set(lengths))
    spec_text = text
    if match := _CAPPED.fullmatch(text):
        spec_text = match["spec"]
        wanted = [length for length in wanted if length <= int(match["longest"])]
        if not wanted:
            raise UserError(f"protocol {text}: the run has no length up to {match['longest']}")
    protocol, name = make_protocol(spec_text)
    protocol.check(wanted)
    return ProtocolPlan(name, protocol, tuple(wanted))


def make_plan(request: RunRequest) -> RunPlan:
    """Resolve and check everything that a request names. Loads no weights.

    Raises:
        UserError: something does not exist, or does not go with the rest; the message names it.
    """
    device = resolve_device(request.device)
    protocols = default_protocols(request.tasks) if request.protocols is None else request.protocols
    plans = [parse_protocol(protocol, request.lengths) for protocol in protocols]
    _refuse_repeats([plan.name for plan in plans], "protocol")
    check_bos(request.bos, plans)
    check_precision(request.precision, request.divergence_from, plans)
    draws = any(plan.protocol.draws_samples for plan in plans)
    if draws:
        check_drawn_samples(plans, request)
    check_answers(plans, request)
    specs = [parsed(model, request) for model in request.models]
    labels = label_models(specs)
    texts = _texts(request)
    checkpoints, descriptions, dtypes = [], [], []
    for model, spec, label in zip(request.models, specs, labels, strict=True):
        checkpoint, dtype = open_checkpoint(model, spec, label, request, device)
        dtypes.append(dtype)
        checkpoints.append(checkpoint)
        descriptions.append(checkpoint.description)
    longest = max(plan.longest for plan in plans)
    for label, description in zip(labels, descriptions, strict=True):
        limit = description.max_length
        if limit is not None and limit < longest:
            raise UserError(
                f"model {label}: its positions ({description.scheme}) end at {limit}, "
                f"length {longest} was asked for; use --length up to {limit}"
            )
    choice = DocumentSelection(
        longest, request.documents, request.keep_short, request.max_tokens, request.seed, draws
    )
    readers = [
        ModelTokens(label, checkpoint.tokenizer, description.vocab_size)
        for label, checkpoint, description in zip(labels, checkpoints, descriptions, strict=True)
    ]
    rules = [plan.protocol.first_token for plan in plans if plan.protocol.first_token]
    prepared = {t.name: tokenize_by_rules(t, readers, choice, rules) for t in texts}
    asked = "float32" if request.dtype == "auto" else request.dtype
    planned = [
        PlannedModel(
            label, checkpoint, description, {n: p.by_model[label] for n, p in prepared.items()}, {}, dtype,
            None if dtype == DTYPES[asked] else str(dtype).removeprefix("torch."),
        )
        for label, checkpoint, description, dtype in zip(
            labels, checkpoints, descriptions, dtypes, strict=True
        )
    ]  # fmt: skip
    selections = {name: p.record.selection for name, p in prepared.items()}
    seeds = {name: s.seed for name, s in selections.items() if s is not None and s.seed is not None}
    base = {name: {label: m.base for label, m in p.by_model.items()} for name, p in prepared.items()}
    looks = plan_looks(request.precision, request.against, base, seeds, labels)
    _plan_cells(planned, plans)
    reference = plan_reference(request, planned, plans, device)
    plan_pieces(planned, reference, request.piece, longest, device)
    specification = RunSpecification(
        keep_short=request.keep_short,
        max_tokens=request.max_tokens,
        device=device.type,
        dtype=asked,
        attention=None if request.attention == "auto" else request.attention,
        precision=None if looks is None else looks.record,
        protocols=tuple(_protocol_record(plan, planned) for plan in plans),
        models=tuple(model.record for model in planned),
        tasks=tuple(
            replace(p.record, drawn_sha256=_drawn_hashes(name, planned, plans))
            for name, p in prepared.items()
        ),
    )
    provenance = Provenance(
        models={label: spec.text for label, spec in zip(labels, specs, strict=True)},
        text_files=request.text,
        tokens_files=request.tokens,
        sessions=(),
    )
    return RunPlan(planned, plans, device, specification, provenance, looks, reference)


def _protocol_record(plan: ProtocolPlan, models: Sequence[PlannedModel]) -> ProtocolRecord:
    """What ``run.json`` says of a protocol, with the reduction or first-token rule that it brings."""
    rule = plan.protocol.first_token
    first_token = {text: {m.label: m.texts[text].of(rule).marker for m in models} for text in models[0].texts}
    return ProtocolRecord(
        plan.name,
        plan.lengths,
        plan.longest if plan.protocol.depends_on_longest else None,
        reduction=None if plan.protocol.reduction == Protocol.reduction else plan.protocol.reduction,
        first_token=first_token if rule else None,
    )


def _drawn_hashes(
    text: str, models: Sequence[PlannedModel], plans: Sequence[ProtocolPlan]
) -> dict[str, dict[str, str]] | None:
    """Protocol -> length -> hash of the tokens it draws of token ids used as given; None where none does."""
    hashes: dict[str, dict[str, str]] = {}
    for plan in plans:
        if plan.protocol.draws_samples and models[0].texts[text].of(plan.protocol.first_token).given:
            cells = {length: models[0].cells[text, plan.name, length] for length in plan.lengths}
            hashes[plan.name] = {str(n): tokens_hash(cell.documents) for n, cell in cells.items()}
    return hashes or None


def _texts(request: RunRequest) -> list[TextSource]:
    bos = request.bos
    texts = [
        synthetic_text(spec, bos, request.lengths, request.seed)
        if is_synthetic(spec)
        else task_text(spec, bos)
        for spec in map(parse_task, request.tasks)
    ]
    texts += [own_text(request.text, bos)] if request.text else []
    texts += [own_tokens(request.tokens, bos)] if request.tokens else []
    texts += request.values
    if not texts:
        raise UserError("run needs text: --task NAME, --text FILE or --tokens FILE.jsonl")
    _refuse_repeats([t.name for t in texts], "task")
    for text in texts:
        check_label(text.name, "task name", "name its file otherwise")
    return texts


def _plan_cells(models: Sequence[PlannedModel], plans: Sequence[ProtocolPlan]) -> None:
    """Every cell of every model; models that read a text alike share its cells. Refuses empty ones."""
    made: dict[tuple[TokenizedText, str, int], CellPlan] = {}
    for model in models:
        for text, readings in model.texts.items():
            for plan in plans:
                reading = readings.of(plan.protocol.first_token)
                if plan.protocol.feeds_last_target and not model.description.prefix_invariant:
                    raise UserError(
                        f"protocol {plan.name}: the tool feeds one token more than it scores, which changes "
                        f"the positions of model {model.label} ({model.description.scheme}); use a "
                        "model whose positions do not depend on the window's length"
                    )
                if reading.window_bos is not None:
                    check_window_marker(text, plan)
                for length in plan.lengths:
                    key = (reading, plan.name, length)
                    if key not in made:
                        made[key] = plan.cell(reading, length)
                    cell = model.cells[text, plan.name, length] = made[key]
                    if not cell.windows:
                        raise UserError(
                            f"{text}: no document gives {plan.name} a window at length {length} "
                            f"(model {model.label})"
                        )
                    if len(cell.windows) > MOST_WINDOWS:
                        raise UserError(
                            f"{text}: {plan.name} at length {length} has {len(cell.windows):,} windows, more "
                            f"than the {MOST_WINDOWS:,} of a cell; use a longer stride, --max-tokens or "
                            "--documents"
                        )
                    if plan.protocol.draws_samples:
                        check_vocabulary(cell.documents, model.label, model.description.vocab_size)


def _refuse_repeats(names: Sequence[str], what: str) -> None:
    """``what``: the kind of thing, for the message."""
    for name in names:
        if names.count(name) > 1:
            raise UserError(f"{what} {name} is given twice")
