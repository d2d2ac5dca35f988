"""The Triton source of one case, as Inductor writes it for an H100: ``programs.py DEVICES CASE OUT``.

CASE is ``attention SCHEME DTYPE HEAD_DIM [train] [pruned] [limit=BYTES] [blocks=MxN]`` (twelve heads, 2,048
queries and keys; ``pruned``: each head has blocks of its own; ``limit``: a card that allows so much shared
memory; ``blocks``: not the size that is chosen) or ``loss DTYPE VOCABULARY``, in one argument. A file
OUT.N.py for each compiled graph.
"""

from __future__ import annotations

import sys
from pathlib import Path

from tests.gpu import card

kind, *words = sys.argv[2].split()
OPTIONS = dict(word.split("=") for word in words if "=" in word)
card.pretend(Path(sys.argv[1]), int(OPTIONS.get("limit", card.SHARED_MEMORY)))

import torch  # noqa: E402
from torch._subclasses.fake_tensor import FakeTensorMode  # noqa: E402

from kerple_eval.models import scoring  # noqa: E402
from kerple_eval.models.decoder import flex  # noqa: E402
from kerple_eval.models.decoder.attention import attention, make_table  # noqa: E402
from kerple_eval.models.decoder.config import DecoderConfig  # noqa: E402
from kerple_eval.models.decoder.flex_blocks import BlockSizes  # noqa: E402
from kerple_eval.models.decoder.network import scheme_of  # noqa: E402

HEADS, TOKENS = 12, 2048
DEVICE = torch.device("cuda", 0)


def attention_program(name: str, dtype: torch.dtype, dim: int, *, train: bool, pruned: bool) -> None:
    config = DecoderConfig(
        vocab_size=256, layers=1, width=HEADS * dim, heads=HEADS, mlp_width=64, train_length=512, scheme=name
    )
    with DEVICE:
        scheme = scheme_of(config).at(0)
    shape = (1, HEADS, TOKENS, dim)
    q, k, v = (torch.empty(shape, device=DEVICE, dtype=dtype, requires_grad=train) for _ in range(3))
    with torch.set_grad_enabled(train):
        table = make_table(scheme, TOKENS, torch.float32 if train else dtype, DEVICE, "flex")
        if pruned:
            assert isinstance(table, flex.FlexScores)
            first = torch.zeros(HEADS, TOKENS // flex.BLOCK, dtype=torch.int64, device=DEVICE)
            table._attend(q, k, v, flex._blocks_from(first, None, TOKENS, TOKENS, None), 0)
            return
        out = attention(q, k, v, scheme, table)
        if train:
            out.sum().backward()


def loss_program(dtype: torch.dtype, vocabulary: int) -> None:
    logits = torch.empty(1, TOKENS, vocabulary, device=DEVICE, dtype=dtype)
    with torch.no_grad():
        compiled = torch.compile(scoring._cross_entropy, dynamic=True, fullgraph=True)
        compiled(logits, torch.zeros(1, TOKENS, device=DEVICE, dtype=torch.int64))


if __name__ == "__main__":
    if "blocks" in OPTIONS:
        sizes = BlockSizes(*map(int, OPTIONS["blocks"].split("x")), stages=2)
        flex.choose = lambda *_: sizes
    with FakeTensorMode(allow_non_fake_inputs=True):
        if kind == "loss":
            loss_program(getattr(torch, words[0]), int(words[1]))
        else:
            how = {name: name in words for name in ("train", "pruned")}
            attention_program(words[0], getattr(torch, words[1]), int(words[2]), **how)
    for number, source in enumerate(card.SOURCES):
        Path(f"{sys.argv[3]}.{number}.py").write_text(source, encoding="utf-8")
