"""NoPE: no positional scheme at all; order is known only through the causal mask.

Source: Haviv et al., "Transformer Language Models without Positional Encodings Still Learn
Positional Information" (Findings of EMNLP 2022, arXiv 2203.16634); Kazemnejad et al. (NeurIPS 2023,
arXiv 2305.19466), who named it. ``logit_ij = q_i k_j / sqrt(d)``. No parameters.

``--extend nope`` drops RoPE from a trained model, which is then trained on: DroPE (Gelberg et al., "Extending
the Context of Pretrained LLMs by Dropping Their Positional Embedding", ICLR 2026).
"""

from __future__ import annotations

from kerple_eval.schemes.base import Scheme


class Nope(Scheme):
    pass
