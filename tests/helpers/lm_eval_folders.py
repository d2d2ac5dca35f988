"""A tiny Llama of transformers with a byte-level tokeniser, in every manner of first-token marker."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

transformers = pytest.importorskip("transformers")
tokenizers = pytest.importorskip("tokenizers")

from tokenizers import decoders, models, pre_tokenizers, processors  # noqa: E402

BOS, EOS = "<s>", "</s>"
TEMPLATES = {
    "adds": f"{BOS} $A", "ends": f"$A {EOS}", "around": f"{BOS} $A {EOS}", "two": f"{EOS} {BOS} $A",
}  # fmt: skip
LETTERS = sorted(pre_tokenizers.ByteLevel.alphabet())


def save_llama(folder: Path, markers: str) -> Path:
    """A model and tokeniser by the markers that the tokeniser puts around a text, see ``TEMPLATES``.

    ``has``: there is a BOS, but none is put; ``none``: there is no BOS, only EOS, and none is put.
    """
    specials = [EOS] if markers == "none" else [BOS, EOS]
    merges = [("t", "h"), ("th", "e"), ("o", "w")]
    words = specials + LETTERS + ["".join(pair) for pair in merges]
    made = tokenizers.Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    if markers in TEMPLATES:
        made.post_processor = processors.TemplateProcessing(
            single=TEMPLATES[markers], special_tokens=[(BOS, 0), (EOS, 1)]
        )
    named = {"eos_token": EOS} | ({} if markers == "none" else {"bos_token": BOS})
    transformers.PreTrainedTokenizerFast(tokenizer_object=made, **named).save_pretrained(folder)
    torch.manual_seed(5)
    config = transformers.LlamaConfig(
        vocab_size=len(words), hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, max_position_embeddings=64,
        bos_token_id=None if markers == "none" else 0, eos_token_id=words.index(EOS),
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(12)  # losses far from log V, so that context and position show
    model.save_pretrained(folder)
    return folder


def loaded(folder: Path, dtype: torch.dtype = torch.float64) -> tuple[Any, Any]:
    """transformers' own (model, tokeniser)."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    return model, transformers.AutoTokenizer.from_pretrained(folder)


def texts() -> list[str]:
    """Documents of many sizes, some with characters of two bytes."""
    line = "the owl now throws the north wind, où the élan of those who know; 73 thin moths."
    long = " ".join(line[i % 7 :] for i in range(4))
    return [long[i : i + n] for i, n in enumerate((5, 11, 16, 17, 18, 33, 40, 64, 190))]


def write_texts(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"text": t}) + "\n" for t in documents))
    return path
