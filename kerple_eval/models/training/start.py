"""Where a training goes on from: a trained model, its positional scheme or its length changed."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from kerple_eval.data.tokenizer import JsonTokenizer, Tokenizer
from kerple_eval.models.base import Checkpoint
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.extend import extend_options, extended
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.schemes.base import Scheme
from kerple_eval.types import UserError


@dataclass(frozen=True, slots=True)
class Start:
    """A trained decoder in float32 with the scheme and length that training goes on with."""

    decoder: Decoder
    tokenizer: Tokenizer
    record: dict[str, Any]  # what the new checkpoint says of the old one


def start_from(model: str, extend: str | None, length: int, seed: int, tokenizer: str | None) -> Start:
    """The model MODEL, extended as ``extend`` says, to be trained on at ``length`` tokens.

    ``seed`` gives initial values to what ``extend`` adds. ``tokenizer`` is a file for a model without one.

    Raises:
        UserError: no native form, an extension that does not fit, or another vocabulary.
    """
    checkpoint = open_model(parse_model(model))
    description = checkpoint.description
    tokeniser = _tokenizer(checkpoint, model, tokenizer)
    decoder = checkpoint.decoder().to(torch.float32)
    before = decoder.config
    config = before if extend is None else extended(before, extend_options(extend), training=True)
    config = replace(config, train_length=length, original_length=_original_length(config, length))
    decoder.set_scheme(config, seed)
    record = {
        "model": model,
        "extend": extend,
        "scheme": before.scheme_name,
        "train_length": before.train_length,
        "seed": description.seed,
        "weights_sha256": description.weights_sha256,
    }
    return Start(decoder, tokeniser, record)


def _tokenizer(checkpoint: Checkpoint, model: str, file: str | None) -> Tokenizer:
    own, size = checkpoint.tokenizer, checkpoint.description.vocab_size
    if file is None:
        if own is None:
            raise UserError(f"{model} has no tokeniser; give its own by --tokenizer FILE")
        return own
    given = JsonTokenizer(Path(file))
    if own is not None and own.identity != given.identity:
        raise UserError(
            f"--tokenizer {file} ({given.vocab_size} ids) is not the tokeniser of {model} "
            f"({own.vocab_size} ids): its vocabulary is another; leave --tokenizer out"
        )
    if own is None and given.vocab_size != size:
        raise UserError(f"--tokenizer {file} has {given.vocab_size} ids, the vocabulary of {model} {size}")
    return given


def _original_length(config: DecoderConfig, length: int) -> int:
    """What ``config``'s scheme must go on calling the trained length; 0 where ``length`` changes nothing."""
    before = config.geometry.train_length
    built = [scheme_of(replace(config, train_length=n, original_length=0)) for n in (before, length)]
    return 0 if _settings(built[0]) == _settings(built[1]) else before


def _settings(scheme: Scheme) -> list[Any]:
    """Numbers and sizes that a scheme was built with."""
    plain = [
        {key: value for key, value in vars(part).items() if isinstance(value, int | float | str)}
        for part in scheme.modules()
    ]
    return [plain, [parameter.shape for parameter in scheme.parameters()]]
