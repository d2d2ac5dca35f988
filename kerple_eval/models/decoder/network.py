"""The native decoder: a pre-norm GPT in the shape of the KERPLE release (GPT-NeoX).

    x   = embed(tokens)                                [B, N, W]
    x   = x + attention(norm(x));  x = x + mlp(norm(x))     per layer, or, with parallel_residual,
    x   = x + attention(norm(x)) + mlp(norm'(x))
    out = head(norm(x))                                [B, rows, V]

LayerNorm with bias, biases in every linear layer but the head, exact (erf) GELU, head untied,
unless the configuration asks otherwise. Weights start N(0, s^2) with s = sqrt(2 / (5 W)), GPT-NeoX's
``small_init`` (Nguyen and Salazar 2019, arXiv 1910.05895; 0.023 at the release's W = 768), those
that write into the residual stream N(0, s^2 / (2 layers)); biases start at 0.
The positional scheme is one module that the embedding and the attention of every layer call; a ``per_layer``
scheme holds one such module for each layer.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerple_eval.models.decoder.attention import GatedScores, KernelTable, SharedScores, attention, make_table
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.flex import FlexScores
from kerple_eval.models.decoder.pointwise import ACTIVATION_FUNCTIONS, NORM_LAYERS, RMSNorm
from kerple_eval.models.decoder.pruning import PrunedShare
from kerple_eval.schemes.assembly import build_scheme
from kerple_eval.schemes.base import Scheme
from kerple_eval.schemes.composite import Combined
from kerple_eval.schemes.networks import Embedding, Linear


class Attention(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.qkv = Linear(config.width, 3 * config.width)
        self.out = Linear(config.width, config.width)

    def forward(self, x: Tensor, scheme: Scheme, table: SharedScores | None, rows: int) -> Tensor:
        """x ``[B, N, W]`` -> ``[B, rows, W]`` for the last ``rows`` positions."""
        batch, length, width = x.shape
        if rows == length:
            q, k, v = self._split(self.qkv(x), 3)
        else:
            weight, bias = self.qkv.weight, self.qkv.bias
            (q,) = self._split(F.linear(x[:, -rows:], weight[:width], bias[:width]), 1)
            k, v = self._split(F.linear(x, weight[width:], bias[width:]), 2)
        with torch.autocast(x.device.type, enabled=False):
            observed = scheme.observe(x)
            gate = scheme.output_gate(x[:, -rows:])
        y = attention(q, k, v, scheme, table, observed)
        if gate is not None:
            y = (y * gate).to(y.dtype)
        out: Tensor = self.out(y.transpose(1, 2).reshape(batch, rows, width))
        return out

    def _split(self, x: Tensor, parts: int) -> tuple[Tensor, ...]:
        batch, length, width = x.shape
        dim = width // parts // self.heads
        return x.view(batch, length, parts, self.heads, dim).permute(2, 0, 3, 1, 4).unbind(0)


class Layer(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.activation, wide = ACTIVATION_FUNCTIONS[config.activation]
        self.parallel_residual = config.parallel_residual
        self.attention_norm = NORM_LAYERS[config.norm](config.width, config.norm_epsilon)
        self.attention = Attention(config)
        self.mlp_norm = NORM_LAYERS[config.norm](config.width, config.norm_epsilon)
        self.mlp_in = Linear(config.width, wide * config.mlp_width)
        self.mlp_out = Linear(config.mlp_width, config.width)

    def forward(self, x: Tensor, scheme: Scheme, table: SharedScores | None, rows: int) -> Tensor:
        y: Tensor = self.attention(self.attention_norm(x), scheme, table, rows)
        x = x[:, x.shape[1] - rows :]
        if self.parallel_residual:
            return x + y + self._mlp(x)
        x = x + y
        return x + self._mlp(x)

    def _mlp(self, x: Tensor) -> Tensor:
        out: Tensor = self.mlp_out(self.activation(self.mlp_in(self.mlp_norm(x))))
        return out


def scheme_of(config: DecoderConfig) -> Scheme:
    """The positional scheme of a configuration, with its initial parameters unset."""
    return build_scheme(config.scheme, config.scheme_options, config.modifiers, config.geometry)


class Decoder(nn.Module):
    def __init__(self, config: DecoderConfig) -> None:
        super().__init__()
        self.config = config
        self.embedding = Embedding(config.vocab_size, config.width)
        self.layers = nn.ModuleList(Layer(config) for _ in range(config.layers))
        self.norm = NORM_LAYERS[config.norm](config.width, config.norm_epsilon)
        self.head = Linear(config.width, config.vocab_size, bias=False)
        if config.tie_embeddings:
            self.head.weight = self.embedding.weight
        self.scheme: Scheme = scheme_of(config)
        self.pruned = PrunedShare()  # of the passes so far, where the backend is "pruned"
        self.backend = "sdpa"  # how attention is computed: set to what ``resolve_backend`` answers

    def reset_parameters(self, seed: int) -> None:
        """Initial weights from ``seed``; every scheme gets the same ones outside the scheme."""
        generator = torch.Generator().manual_seed(seed)
        small = math.sqrt(2 / (5 * self.config.width))
        residual = small / math.sqrt(2 * self.config.layers)
        for name, module in self.named_modules():
            if name.startswith("scheme."):
                continue  # drawn below, by a second generator
            if isinstance(module, nn.Linear | nn.Embedding):
                std = residual if name.endswith(("attention.out", "mlp_out")) else small
                nn.init.normal_(module.weight, 0.0, std, generator=generator)
                if isinstance(module, nn.Linear) and module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, nn.LayerNorm | RMSNorm):
                module.reset_parameters()
        self.scheme.reset_parameters(torch.Generator().manual_seed(seed))
        self.scheme.project_()

    def set_scheme(self, config: DecoderConfig, seed: int = 0) -> None:
        """Replace the scheme by that of ``config``; parameters that both schemes have keep their values.

        ``config`` may differ from the decoder's only in scheme, modifiers and lengths. What it adds gets its
        initial values from ``seed``.
        """
        scheme = scheme_of(config)
        scheme.reset_parameters(torch.Generator().manual_seed(seed))
        old = _scheme_parts(self.scheme)
        for name, part in _scheme_parts(scheme).items():
            if name in old:
                part.load_state_dict(old[name].state_dict())
        self.scheme = scheme.to(self.embedding.weight.dtype)
        self.config = config

    def cast(self, dtype: torch.dtype) -> Decoder:
        """Weights to ``dtype``; the scheme stays in float32 at least (distances and bias)."""
        wide = torch.promote_types(dtype, torch.float32)
        for name, child in self.named_children():  # never the scheme to half and back: that rounds it
            child.to(wide if name == "scheme" else dtype)
        return self

    def forward(self, tokens: Tensor, rows: int | None = None) -> Tensor:
        """Normed features ``[B, rows, W]`` of the last ``rows`` positions of tokens ``[B, N]``.

        The last layer's queries, its MLP and the final norm run on those rows only.
        """
        length = tokens.shape[1]
        rows = length if rows is None else rows
        x = self.embedding(tokens)
        positions = self.scheme.augmented(torch.arange(length, device=tokens.device))
        x = self.scheme.embed(x, positions)
        tables: dict[Scheme, SharedScores | None] = {}  # one serves all layers that share a scheme
        for index, layer in enumerate(self.layers):
            scheme = self.scheme.at(index)
            if scheme not in tables:
                tables[scheme] = make_table(scheme, length, x.dtype, tokens.device, self.backend)
            x = layer(x, scheme, tables[scheme], rows if index == len(self.layers) - 1 else length)
        for table in tables.values():
            if isinstance(table, KernelTable | GatedScores | FlexScores):
                self.pruned.add(table.pruned)
        out: Tensor = self.norm(x)
        return out


def _scheme_parts(scheme: Scheme) -> dict[str, Scheme]:
    return scheme.parts if isinstance(scheme, Combined) else {"": scheme}
