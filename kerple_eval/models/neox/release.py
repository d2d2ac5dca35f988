"""``numerics=release``: the arithmetic of the release, rounding for rounding, to measure its cost.

Source: chijames/KERPLE, ``megatron/model/transformer.py``, ``megatron/mpu/layers.py`` and GPT-NeoX's
``positional_embeddings.py``, ``fused_softmax.py``, ``fused_bias_dropout.py``.

Everything is in the run's precision t (bfloat16 for the paper): weights, activations, scores
``[B, H, N, N]``, the softmax's result. In particular

* distances are cast to t *before* the kernel: in bfloat16 those above 256 collide (steps of 2 up to
  512, of 64 from 8192), and each operation of ``-p log(1 + a D)`` rounds;
* rotary and sinusoidal angles are products of t-rounded positions and t-rounded frequencies;
* future scores are set to -10000, and the softmax runs in t unless ``attention-softmax-in-fp32``;
* with ``apply-query-key-layer-scaling`` the layer n (from 0) divides its scores by max(1, n) while they are
  in t, adds the bias, then multiplies both by it in float32, where the softmax then runs;
* rmsnorm is ``scale * (x / (|x| W^(-1/2) + eps))``, each operation rounded (``norms.py``);
* logits leave in t; the loss is taken in float32.

Only the query rows are cut into chunks, so that [N, N] never exists; every row is computed as there.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kerple_eval.models.base import LanguageModel
from kerple_eval.models.decoder.network import Decoder, Layer
from kerple_eval.models.neox.config import NeoxConfig
from kerple_eval.models.neox.position import NeoxScheme
from kerple_eval.schemes.slopes import slopes
from kerple_eval.schemes.t5 import bucket_index
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

SCORE_ELEMENTS = 1 << 24  # scores a chunk of query rows may hold
HEAD_ELEMENTS = 1 << 22
MASKED = -10000.0
PRECISIONS = {"bfloat16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}


def release_dtype(config: NeoxConfig, where: str) -> torch.dtype:
    """The run's precision, by the release's rule; refuses what this module does not compute."""
    if config.precision not in PRECISIONS:
        known = ", ".join(PRECISIONS)
        raise UserError(
            f"{where}: numerics=release knows {known}, the configuration {quoted(config.precision)}"
        )
    if config.loss_in_fp16:
        raise UserError(
            f"{where}: fp16-lm-cross-entropy takes the loss in float16, which numerics=release does not "
            "compute; without numerics=release losses are those of the stored weights"
        )
    return PRECISIONS[config.precision]


class ReleaseModel(LanguageModel):
    attention = "release"

    def __init__(
        self,
        decoder: Decoder,
        position: NeoxScheme,
        config: NeoxConfig,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self.decoder = decoder.to(device, dtype).eval()  # the scheme's parameters too
        self.position = position
        self.neox = config
        self.device = device
        self.dtype = dtype

    def logits(self, inputs: Tensor, rows: int) -> Iterator[Tensor]:
        x = self._features(inputs)[:, inputs.shape[1] - rows :]
        step = max(1, HEAD_ELEMENTS // (inputs.shape[0] * self.decoder.config.vocab_size))
        for start in range(0, rows, step):
            yield self.decoder.head(x[:, start : start + step])

    def _features(self, inputs: Tensor) -> Tensor:
        length = inputs.shape[1]
        x = self._embed(self.decoder.embedding(inputs), length)
        kernel, weight = self._by_distance(length)
        for index, layer in enumerate(self.decoder.layers):
            assert isinstance(layer, Layer)
            residual = x
            divisor = max(1, index) if self.neox.layer_scaling else None
            attended = self._attend(layer, self._norm(layer.attention_norm, x), kernel, weight, divisor)
            attended = attended + layer.attention.out.bias
            if not self.neox.parallel_residual:
                residual = attended = residual + attended
            z = self._norm(layer.mlp_norm, x if self.neox.parallel_residual else residual)
            z = layer.activation(F.linear(z, layer.mlp_in.weight) + layer.mlp_in.bias)
            z = F.linear(z, layer.mlp_out.weight) + layer.mlp_out.bias
            x = attended + z
            if self.neox.parallel_residual:
                x = residual + x
        return self._norm(self.decoder.norm, x)

    def _norm(self, module: nn.Module, x: Tensor) -> Tensor:
        if self.neox.norm == "rmsnorm":
            rms = x.norm(2, dim=-1, keepdim=True) * self.neox.width**-0.5
            scaled: Tensor = module.get_parameter("weight") * (x / (rms + self.neox.norm_epsilon))
            return scaled
        out: Tensor = module(x)
        return out

    def _embed(self, x: Tensor, length: int) -> Tensor:
        if self.position.pos_emb == "learned":
            return self.decoder.scheme.embed(x, torch.arange(length, device=self.device))
        if self.position.pos_emb == "sinusoidal":
            angles = self._angles(length, self.neox.width, 10000.0)
            return x + torch.cat([angles.sin(), angles.cos()], dim=-1).to(self.dtype)
        return x

    def _angles(self, length: int, dim: int, base: float) -> Tensor:
        """``[N, dim/2]``: rounded positions times rounded frequencies, rounded, then float32."""
        t = torch.arange(0, dim, 2, device=self.device).float()
        frequencies = (1.0 / (base ** (t / dim))).to(self.dtype)
        positions = torch.arange(length, device=self.device).to(self.dtype)
        return (positions[:, None] * frequencies).float()

    def _by_distance(self, length: int) -> tuple[Tensor | None, Tensor | None]:
        """Bias and weight ``[H, N]`` at the distances 0..N-1, in the release's order of operations."""
        name = self.position.pos_emb
        d = torch.arange(length, device=self.device).to(self.dtype)
        kernel: Tensor | None = None
        weight: Tensor | None = None
        r = {n: p.detach()[:, None] for n, p in self.decoder.scheme.named_parameters()}
        if name == "kerple_log":
            kernel = -r["r1"] * torch.log(1 + r["r2"] * d)
        elif name == "kerple_power_original":
            kernel = -d * r["r1"]
        elif name in ("kerple_power_ap_", "kerple_power_ap_ap"):
            kernel = -d.pow(r["r2"]) * r["r1"]
        elif name == "alibi":
            m = torch.tensor(slopes(self.neox.heads), device=self.device).to(self.dtype)
            kernel = -d * m[:, None]
        elif name == "rpe":
            exact = torch.arange(length, device=self.device)
            bucket = bucket_index(exact, self.neox.buckets, self.neox.max_distance)
            table = self.decoder.scheme.get_parameter("relative_bias").detach()
            kernel = table[bucket].T * (self.neox.width // self.neox.heads) ** 0.5
        if name in ("kerple_power__ap", "kerple_power_ap_ap"):
            a, p = (r["r1"], r["r2"]) if name == "kerple_power__ap" else (r["r3"], r["r4"])
            weight = (-d.pow(p) * a).exp()
        return kernel, weight

    def _attend(
        self, layer: Layer, x: Tensor, kernel: Tensor | None, weight: Tensor | None, divisor: int | None
    ) -> Tensor:
        """Attention's output before its bias: ``[B, N, W]``; ``divisor`` is the layer scaling's."""
        batch, length, width = x.shape
        heads, dim = self.neox.heads, width // self.neox.heads
        qkv = layer.attention.qkv(x).view(batch, length, 3, heads, dim).permute(2, 0, 3, 1, 4)
        q, k, v = qkv.reshape(3, batch * heads, length, dim).unbind(0)
        if self.position.pos_emb == "rotary":
            q, k = self._rotate(q), self._rotate(k)
        keys = torch.arange(length, device=self.device)
        rows = max(1, SCORE_ELEMENTS // (batch * heads * length))
        parts = []
        alpha = 1.0 / (dim**0.5 * (divisor or 1))
        for start in range(0, length, rows):
            queries = keys[start : start + rows]
            distance = queries[:, None] - keys
            scores = torch.baddbmm(
                q.new_empty(1), q[:, start : start + rows], k.transpose(1, 2), beta=0.0, alpha=alpha
            ).view(batch, heads, len(queries), length)
            if weight is not None:
                scores = scores * weight[:, distance.clamp(min=0)]
            if kernel is not None:
                scores = scores + kernel[:, distance.clamp(min=0)]
            if self.neox.softmax_in_fp32 or divisor is not None:
                scores = scores.float()
            if divisor is not None:
                scores = scores * divisor
            scores = scores.masked_fill(distance < 0, MASKED)
            parts.append(torch.bmm(scores.softmax(dim=-1).to(self.dtype).flatten(0, 1), v))
        context = torch.cat(parts, dim=1).view(batch, heads, length, dim).transpose(1, 2)
        return F.linear(context.reshape(batch, length, width), layer.attention.out.weight)

    def _rotate(self, x: Tensor) -> Tensor:
        """Rotary on ``[B H, N, d]``, each product and sum rounded."""
        rotated = int(x.shape[-1] * self.neox.rotary_fraction)
        angles = self._angles(x.shape[1], rotated, self.neox.rotary_base).repeat(1, 2)
        cos, sin = angles.cos().to(self.dtype), angles.sin().to(self.dtype)
        part = x[..., :rotated]
        first, second = part.chunk(2, dim=-1)
        return torch.cat([part * cos + torch.cat([-second, first], dim=-1) * sin, x[..., rotated:]], dim=-1)
