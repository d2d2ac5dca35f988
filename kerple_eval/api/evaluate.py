"""``evaluate``, ``score`` and ``from_module``. No torch until one of them is called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

from kerple_eval.api.run import Run, with_reports
from kerple_eval.evaluation.request import read_lengths
from kerple_eval.types import BosRule, UserError

if TYPE_CHECKING:
    import pandas as pd
    import torch

    from kerple_eval.evaluation.worker import RunProgress
    from kerple_eval.models.in_memory import InMemoryCheckpoint

Words = str | PathLike[str] | Sequence[str | PathLike[str]]


def evaluate(
    models: Words | Mapping[str, Any],
    *,
    out: str | PathLike[str] | None = None,
    tokenizer: Any = None,
    tasks: Words = (),
    protocols: str | Sequence[str] | None = None,
    lengths: int | str | Sequence[int | str] | None = None,
    text: Any = (),
    column: str = "text",
    tokens: Any = (),
    documents: int | None = None,
    keep_short: bool = False,
    max_tokens: int | None = None,
    seed: int | None = None,
    bos: BosRule | None = None,
    device: str | torch.device = "auto",
    dtype: str | torch.dtype | None = None,
    attention: str = "auto",
    piece: int | None = None,
    precision: str | None = None,
    against: str | None = None,
    divergence_from: Any = None,
    retry: bool = False,
    on_progress: Callable[[RunProgress], None] | None = None,
) -> Run:
    """Score every (model, task, protocol, length).

    With ``out`` it is the same as ``kerple-eval run``: finished cells are kept, failed ones are tried again,
    and a directory that holds a run with another specification is refused.

    Args:
        models: label -> model: a transformers model, any ``torch.nn.Module`` or function of ids ``[B, N]``
            that gives logits ``[B, N, V]``, a `LanguageModel`, or one of these by :func:`from_module`; or
            MODEL as on the command line, one or several (``zoo:alibi``, ``hf:/models/llama``, a directory).
            Device and dtype of a model in memory are its own, and it is left as it was.
        out: the run directory; it is made where it does not exist. Without it the run lives in a temporary
            folder for as long as the returned object.
        tokenizer: what reads text for the models in memory: of transformers or tokenizers, ``"bytes"``, or a
            :class:`kerple_eval.data.tokenizer.Tokenizer`. Not needed for token ids.
        tasks: task names or task files.
        protocols: how documents are cut into windows, ``NAME:key=value``, with ``@N`` after it for lengths
            up to N only. full-context unless given; answer where every task is made by length (passkey,
            needle, ...).
        lengths: window lengths L in tokens, as numbers or as on the command line (``"512..16k"``). 512 to
            16,384, doubling, unless given.
        text: text of your own: a string (text itself), a ``Path`` (a file; of ``.jsonl`` each line is a
            document), a ``datasets.Dataset``, or a sequence of these; each is a document, or several.
        column: the column of a data set that holds the text.
        tokens: token ids, used as given: an array or sequence of ids, several of them, or a ``Path``.
        documents: the number of documents of each task; all that are long enough unless given.
        keep_short: score also documents with fewer tokens than the longest length needs.
        max_tokens: cut each document after this many tokens.
        seed: draws the documents where ``documents`` is less than all; the task's own unless given.
        bos: the first-token rule of every text in place of the task's own: never, document, window or
            tokenizer (as the model's tokeniser does by itself; the default for ``text``).
        device: auto (CUDA where there is a card, else the CPU), cpu or cuda.
        dtype: float32, bfloat16, float16 or float64: the precision that checkpoints are scored in. Unless
            given (or ``"auto"``) a Hugging Face model on CUDA is scored in the one it is stored in, every
            other checkpoint in float32.
        attention: auto, flex, sdpa, eager or pruned: how attention is computed. A named one is used or, where
            a model cannot be computed so, refused.
        piece: feed windows longer than so many tokens in pieces of so many, with the model's own cache, so
            that activations are those of a piece (models of transformers). Unless given, windows that
            would not fit in memory are fed so.
        precision: a percentage (``"0.5%"``): documents are scored, 10, 20, 40, ..., until every perplexity,
            or its ratio to that of ``against``, is known within it with 95 % certainty; ``documents`` is
            then the most to score.
        against: with ``precision``, the label of the model that the others are compared with.
        divergence_from: keep of every target how far each model's prediction is from this one's: a model in
            memory, MODEL, the label of one of ``models``, or ``"self@N"``, each model itself at length N. Of
            a finished run only what is missing is computed. See :meth:`Run.divergences`.
        retry: try again also cells whose processes were killed (by the kernel for want of memory, say),
            which are recorded as failed.
        on_progress: called before and after every cell and every forward pass, with a ``RunProgress``.

    Returns:
        The run; ``run.summary()`` and ``run.losses()`` are pandas frames, losses in nats per target.

    Raises:
        UserError: something that was asked for is wrong, in one line; nothing was computed.
    """
    from kerple_eval.evaluation.values import run_values  # noqa: PLC0415 - imports torch

    return with_reports(run_values(
        models, out=out, tokenizer=tokenizer, tasks=tasks, protocols=protocols, lengths=lengths, text=text,
        column=column, tokens=tokens, documents=documents, keep_short=keep_short, max_tokens=max_tokens,
        seed=seed, bos=bos, device=device, dtype=dtype, attention=attention, piece=piece,
        precision=precision, against=against, divergence_from=divergence_from, retry=retry,
        on_progress=on_progress,
    ))  # fmt: skip


def score(
    model: Any,
    text: Any,
    *,
    length: int,
    protocol: str = "full-context",
    tokenizer: Any = None,
    column: str = "text",
    **options: Any,
) -> pd.DataFrame:
    """Losses of one model on text or token ids, one row per target.

    Args:
        model: a model in memory, or MODEL as on the command line; see :func:`evaluate`.
        text: text (a string, a ``Path``, a data set, a sequence) or token ids (an array, a sequence of ids).
        length: window length L in tokens.
        protocol: how documents are cut into windows.
        tokenizer: what reads text for a model in memory.
        options: further options of :func:`evaluate` (``keep_short``, ``documents``, ``bos``, ...).

    Returns:
        Columns ``document`` (name), ``position`` (of the target in its document, from 0), ``context`` (tokens
        the model saw) and ``loss`` (nats).

    Raises:
        UserError: something that was asked for is wrong, or the model could not be scored.
    """
    from kerple_eval.evaluation import given  # noqa: PLC0415 - imports torch

    if len(read_lengths("length", length)) != 1 or not isinstance(protocol, str):
        raise UserError("score takes one length and one protocol; evaluate takes several")
    words = isinstance(model, str | PathLike)
    text = list(text) if isinstance(text, Iterator) else text  # it is looked into, then read
    source = {"tokens": text} if given.holds_ids(text) else {"text": text, "column": column}
    run = evaluate(
        model if words else {"model": model}, tokenizer=tokenizer, protocols=[protocol], lengths=[length],
        **source, **options,
    )  # fmt: skip
    row, *others = run.summary().to_dict("records")
    if others:
        raise UserError("score takes one text; evaluate takes several")
    if row["status"] != "ok":
        raise UserError(f"the model could not be scored: {row['error']}")
    frame = run.losses()[["document", "target", "context", "loss"]]
    return frame.rename(columns={"target": "position"})


def from_module(
    model: Any,
    *,
    tokenizer: Any = None,
    scheme: str | None = None,
    train_length: int | None = None,
    max_length: int | None = None,
    prefix_invariant: bool | None = None,
    seed: int | None = None,
    identity: str | None = None,
    extend: str | None = None,
) -> InMemoryCheckpoint:
    """A model in memory with what its code does not say; what stays unknown is recorded as unknown.

    Args:
        model: a transformers model, any ``torch.nn.Module`` or function of ids ``[B, N]`` that gives logits
            ``[B, N, V]``, or a `LanguageModel`.
        tokenizer: what reads text for it, in place of :func:`evaluate`'s.
        scheme: the name of its positional scheme.
        train_length: tokens that it was trained at.
        max_length: the longest window that its positions are defined for.
        prefix_invariant: whether the logits of a prefix do not depend on what follows, at any length; then
            ``prefix`` serves all lengths by one pass. It is measured at short lengths too.
        seed: its training seed.
        identity: a name for its version, which a run that is resumed trusts. A model without parameters
            needs one; for others it stands for code and settings, and tensors are compared all the same.
        extend: how a transformers model's rotary positions are extended while it is scored, as after
            ``extend=`` in MODEL: ``"self-extend,group=4"``, ``"yarn,factor=4"``, ``"window=512"``.
    """
    from kerple_eval.models.in_memory import InMemoryCheckpoint, tokenizer_of  # noqa: PLC0415 - imports torch

    return InMemoryCheckpoint(
        model, tokenizer=tokenizer_of(tokenizer), scheme=scheme, train_length=train_length,
        max_length=max_length, prefix_invariant=prefix_invariant, seed=seed, identity=identity,
        extend=extend,
    )  # fmt: skip
