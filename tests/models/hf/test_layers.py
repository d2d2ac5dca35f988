"""The scheme of each layer of transformers' architectures, against what their layers do with numbers.

The oracle knows no names: it runs one layer of a tiny model on its own input and changes that input. Where
the first token is changed, the rows that change are those that see it: the window. Where two tokens in the
past change places, the last row changes exactly if positions (or a state) matter in that layer.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from kerple_eval.models.hf.layers import layer_schemes, schemes_by_path, text_layers
from kerple_eval.schemes.layers import format_layers
from tests.helpers import architectures
from tests.helpers.architectures import WINDOW, V

TOKENS = 24


def calls(model: Any, ids: Tensor) -> dict[str, tuple[nn.Module, tuple[Any, ...], dict[str, Any]]]:
    """Path of each module in a list that text passes through -> it and what it is first called with."""
    found: dict[str, Any] = {}
    handles = [
        model.get_submodule(path).register_forward_pre_hook(
            lambda module, args, kwargs, path=path: found.setdefault(path, (module, args, kwargs)) and None,
            with_kwargs=True,
        )
        for path in text_layers(model)
    ]
    with torch.no_grad():
        model(input_ids=ids, use_cache=False)
    for handle in handles:
        handle.remove()
    return found


def rerun(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> Tensor:
    """The layer's output ``[1, N, D]`` for other hidden states."""
    if args:
        args = (hidden, *args[1:])
    else:
        kwargs = kwargs | {"hidden_states": hidden}
    with torch.no_grad():
        found = module(*args, **kwargs)
    return found[0] if isinstance(found, tuple | list) else found


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
    base, *words = re.split(r"[,&]", name)
    if name == "mlp":
        assert seen == (1, 1, False)
        return
    window = name.partition("window=")[2]
    if {"recurrent", "conv", "compressed"} & {base, *words}:
        assert first > 1  # a state may forget
        return
    if window:
        assert (first, later) == (min(int(window), TOKENS), min(int(window), TOKENS - WINDOW + 1))
    elif "chunk=" in name:
        assert (first, later) == (WINDOW, 1)
    elif base != "unknown":
        assert first == TOKENS
    if base != "unknown":
        assert ordered is (base not in ("learned", "sinusoidal", "nope"))


def check(name: str) -> str:
    """The scheme of a tiny model of the architecture, each of its layers compared with the oracle."""
    model = architectures.model(architectures.config(name), noise=0.05)
    names = schemes_by_path(type(model), model.config)
    ids = torch.randint(3, V, (1, TOKENS), generator=torch.Generator().manual_seed(0))
    found = calls(model, ids)
    for path, layer in names.items():
        seen = measured(*found[path])
        try:
            check_layer(layer, seen)
        except AssertionError as error:
            raise AssertionError(f"{name}: {path} is {layer}, measured {seen}; all: {names}") from error
    return format_layers(list(names.values()))


#: What `inspect` says of four layers of each architecture, those of `ROPE` and `LEARNED` apart.
TEXTS = {
    "afmoe beam cohere2 cohere2_moe exaone4 exaone_moe": "rope,window=8 3/4 + nope 1/4",
    "apertus apertus1p5_text": "rope-llama3",
    "bailing_hybrid bamba olmo_hybrid": "recurrent 3/4 + rope 1/4",
    "bloom mpt": "alibi",
    "cpmant": "t5",
    "ctrl marian pegasus xglm": "sinusoidal",
    "cwm": "rope-llama3,window=8 3/4 + rope-llama3 1/4",
    "deepseek_v4": "rope,window=8,compressed",
    "doge gemma3_text gemma3n_text kolibri1 ministral mistral mixtral": "rope,window=8",
    "phi3 phimoe starcoder2": "rope,window=8",
    "dory granite_swa granitemoe_swa mimo_v2_flash olmo3": "rope,window=8 3/4 + rope 1/4",
    "falcon_h1": "rope&recurrent",
    "falcon_mamba mamba mamba2 rwkv xlstm": "recurrent",
    "flint": "nope 3/4 + rope,window=8 1/4",
    "gemma2 vaultgemma": "rope,window=8 2/4 + rope 2/4",
    "gemma4 gemma4_text gemma4_unified gemma4_unified_text": "rope,window=8 3/4 + rope-proportional 1/4",
    "gpt_neo": "learned 2/4 + learned,window=8 2/4",
    "gpt_oss": "rope-yarn,window=8 2/4 + rope-yarn 2/4",
    "granitemoehybrid jamba kimi_linear": "recurrent 3/4 + nope 1/4",
    "inkling2_loop_text inkling2_text inkling_text": "unknown,window=8&conv",
    "jetmoe reformer xlnet": "unknown",
    "lara_mini": "recurrent 2/4 + rope,window=8 1/4 + nope 1/4",
    "lfm2 lfm2_moe": "conv 3/4 + rope 1/4",
    "lfm3": "conv 3/4 + rope-proportional 1/4",
    "llama4 llama4_text": "rope,chunk=8 3/4 + nope 1/4",
    "minimax": "rope,window=8 2/4 + recurrent 2/4",
    "ministral3": "rope-yarn,window=8",
    "modernbert-decoder": "rope 2/4 + rope,window=8 2/4",
    "nemotron_h": "mlp 2/4 + recurrent 1/4 + nope 1/4",
    "prophetnet": "learned&t5",
    "qwen3_5 qwen3_5_moe qwen3_5_moe_text qwen3_5_text": "recurrent 3/4 + rope 1/4",
    "qwen3_next qwen4_exp qwen4_exp_text": "recurrent 3/4 + rope 1/4",
    "recurrent_gemma": "recurrent 3/4 + rope,window=8 1/4",
    "smollm3": "rope 3/4 + nope 1/4",
    "zamba": "recurrent 3/5 + nope&recurrent 2/5",
    "zamba2": "recurrent 2/4 + nope&recurrent 2/4",
}
#: Vectors added to the embeddings; all that stand in neither table have rotary positions throughout.
LEARNED = """
bart bert bert-generation big_bird bigbird_pegasus biogpt blenderbot blenderbot-small camembert data2vec-text
electra ernie gpt-sw3 gpt2 gpt_bigcode mbart megatron-bert mvp openai-gpt opt plbart rembert roberta
roberta-prelayernorm roc_bert trocr whisper xlm xlm-roberta xlm-roberta-xl xmod
"""
EXPECTED = {name: text for names, text in (TEXTS | {LEARNED: "learned"}).items() for name in names.split()}
#: Layers that cannot be run again alone: they take several streams, or masks of another form.
NOT_ALONE = ("cpmant", "gemma3n_text", "prophetnet", "xlm", "xlnet")
FAST = ("llama", "smollm3", "cohere2", "gpt_oss", "llama4_text", "qwen3_next", "nemotron_h", "opt", "bloom")


def scheme_of(name: str) -> str:
    """The scheme alone, where no layer can be run by itself."""
    config = architectures.config(name)
    made = architectures.transformers.AutoModelForCausalLM._model_mapping[type(config)]
    return format_layers(layer_schemes(made, config))


def check_scheme(name: str) -> None:
    found = scheme_of(name) if name in NOT_ALONE else check(name)
    assert found == EXPECTED.get(name, "rope")


@pytest.mark.parametrize("name", FAST)
def test_each_kind_of_layer(name: str) -> None:
    check_scheme(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in architectures.NAMES if name not in architectures.NO_TINY])
def test_every_architecture(name: str) -> None:
    check_scheme(name)
