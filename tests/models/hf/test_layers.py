"""The scheme of each layer of transformers' architectures, against what their layers do with numbers.

The oracle knows no names: it runs one layer of a tiny model on its own input and changes that input. Where
the first token is changed, the rows that change are those that see it: the window. Where two tokens in the
past change places, the last row changes exactly if positions (or a state) matter in that layer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kerple_eval.models.hf.layers import layer_schemes, text_layers
from kerple_eval.schemes.layers import format_layers
from tests.helpers import architectures
from tests.helpers.architectures import WINDOW, V

TOKENS = 24


def calls(model: Any, ids: Tensor) -> Iterator[tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """Each layer that text passes through with what it is called with."""
    found: list[Any] = []
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, kwargs: found.append((module, args, kwargs)), with_kwargs=True
        )
        for path in text_layers(model)
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    yield from found


def rerun(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Tensor:
    """The layer's output ``[1, N, D]`` for other hidden states."""
    if args:
        args = (hidden, *args[1:])
    else:
        kwargs = kwargs | {"hidden_states": hidden}
    with torch.no_grad():
        found = module(*args, **kwargs)
    return found[0] if isinstance(found, tuple) else found


def measured(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[int, int, bool]:
    """Rows that see token 0, rows that see token WINDOW - 1, and whether the order of the past matters."""
    hidden = args[0] if args else kwargs["hidden_states"]
    before = rerun(module, args, kwargs, hidden)

    def rows_changed(changed: Tensor) -> Tensor:
        apart = (rerun(module, args, kwargs, changed) - before).abs()[0].reshape(TOKENS, -1).amax(1)
        return apart > 1e-6 * before.abs().max()

    sees = []
    for token in (0, WINDOW - 1):
        changed = hidden.clone()
        changed[:, token] += torch.randn(hidden[:, token].shape, generator=torch.Generator().manual_seed(1))
        sees.append(int(rows_changed(changed).sum()))
    order = list(range(TOKENS))
    order[-3], order[-2] = order[-2], order[-3]  # within any window, and any block of WINDOW tokens
    return sees[0], sees[1], bool(rows_changed(hidden[:, order])[-1])


def check_layer(name: str, seen: tuple[int, int, bool]) -> None:
    """One name against what the layer does."""
    first, later, ordered = seen
    base, *words = re.split(r",", name)
    if name == "mlp":
        assert seen == (1, 1, False)
        return
    if words and words[0].startswith("window=") and "&" not in name:
        assert (first, later) == (WINDOW, WINDOW)
    elif words and words[0].startswith("chunk="):
        assert (first, later) == (WINDOW, 1)
    elif base == "conv":
        assert 1 < first < TOKENS
    elif base not in ("recurrent", "unknown"):  # a state may forget
        assert first == TOKENS
    if base in ("learned", "sinusoidal", "nope"):
        assert not ordered
    elif base != "unknown":
        assert ordered


def check(name: str) -> list[str]:
    """The schemes of the layers of a tiny model of the architecture, each compared with the oracle."""
    config = architectures.config(name)
    model = architectures.model(config)
    names = layer_schemes(type(model), model.config)
    ids = torch.randint(3, V, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    found = list(calls(model, ids))
    assert len(found) == len(names)
    for layer, call in zip(names, found, strict=True):
        try:
            check_layer(layer, measured(*call))
        except AssertionError as error:
            raise AssertionError(f"{name}: {layer} of {names}: {measured(*call)}") from error
    return names


#: Architectures of every kind, with what `inspect` says of four layers of them.
KINDS = {
    "llama": "rope",
    "smollm3": "rope 3/4 + nope 1/4",
    "cohere2": "rope,window=8 3/4 + nope 1/4",
    "gemma2": "rope,window=8 2/4 + rope 2/4",
    "llama4_text": "rope,chunk=8 3/4 + nope 1/4",
    "gpt_oss": "rope-yarn,window=8 2/4 + rope-yarn 2/4",
    "qwen3_next": "recurrent 3/4 + rope 1/4",
    "nemotron_h": "mlp 2/4 + recurrent 1/4 + nope 1/4",
    "opt": "learned",
    "mamba": "recurrent",
    "bloom": "alibi",
}


@pytest.mark.parametrize("name", KINDS)
def test_each_kind_of_layer(name: str) -> None:
    assert format_layers(check(name)) == KINDS[name]
