"""GPT-NeoX checkpoints (``neox:DIR``), those of the KERPLE release among them.

    neox:DIR[,pos-emb=NAME][,numerics=release][,tokenizer=FILE | ,vocab=FILE,merges=FILE][,extend=NAME,...]

Source: chijames/KERPLE (the release) and EleutherAI/gpt-neox; each part says which file
(:mod:`files` the folder, :mod:`config` the configuration, :mod:`tensors` and :mod:`weights` the
shards, :mod:`position` the scheme). The checkpoint becomes a native decoder,
so what is computed is the release's formula in the dtype of the run, with distances and bias in
float32; ``numerics=release`` rounds as the release does (:mod:`release`).

All logits, those of vocabulary padding among them, stay in the softmax, as in the release.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch

from kerple_eval.data.tokenizer import Tokenizer
from kerple_eval.models.base import Checkpoint, Description, LanguageModel, Shape
from kerple_eval.models.decoder.backends import resolve_backend
from kerple_eval.models.decoder.config import DecoderConfig
from kerple_eval.models.decoder.extend import extended
from kerple_eval.models.decoder.network import Decoder, scheme_of
from kerple_eval.models.decoder.scored import DecoderModel
from kerple_eval.models.neox.config import POS_EMBS, read_config
from kerple_eval.models.neox.dape import ForkScheme
from kerple_eval.models.neox.files import locate, looks_like_neox
from kerple_eval.models.neox.position import NeoxScheme, choose
from kerple_eval.models.neox.release import ReleaseModel, release_dtype
from kerple_eval.models.neox.tensors import Notes
from kerple_eval.models.neox.tokenizer import OPTIONS, find_tokenizer
from kerple_eval.models.neox.weights import NeoxWeights
from kerple_eval.support.registry import unknown
from kerple_eval.types import UserError

_OWN = ("pos-emb", "numerics", *OPTIONS)
_DTYPES = {torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16"}


class NeoxCheckpoint(Checkpoint):
    tokenizer_option = ",tokenizer=FILE (a tokenizer.json) or ,vocab=FILE,merges=FILE (GPT-2's)"

    def __init__(self, location: str, options: dict[str, str]) -> None:
        files = locate(location)
        self.where = str(files.step)
        self.neox = read_config(files.configs)
        self._notes = Notes()
        self.weights = NeoxWeights(files, self.neox, self._notes)
        release = options.get("numerics") == "release"
        self.position = choose(
            self.neox,
            options.get("pos-emb"),
            self.weights.embedding,
            self.weights.layer,
            self.where,
            self._notes,
        )
        self._refuse_layer_scaling(release=release)
        try:
            self.stored_config = self._configure()
            with torch.device("meta"):
                empty = Decoder(self.stored_config)
            scheme = scheme_of(self.stored_config)
        except UserError as error:
            raise UserError(f"{self.where}: {error}") from None
        scheme_state = self.weights.check(self.position)
        scheme.to(self.weights.wide)
        self._parameters = sum(parameter.numel() for parameter in empty.parameters())
        changes = {key: value for key, value in options.items() if key not in _OWN}
        self.config = extended(self.stored_config, changes, "neox", _OWN) if changes else self.stored_config
        evaluated = scheme_of(self.config)
        self._evaluated = evaluated
        self._max_positions = evaluated.max_positions
        self._prefix_invariant = evaluated.prefix_invariant
        scheme.load_state_dict(scheme_state, strict=True)
        self._report_clamps(scheme.project_(), scheme.at(0).constraints)
        self._scheme_state = {name: tensor.detach() for name, tensor in scheme.state_dict().items()}
        self.release: torch.dtype | None = None
        if release:
            if changes or isinstance(self.position, ForkScheme):
                raise UserError(f"{self.where}: numerics=release computes the release's own schemes alone")
            self.release = release_dtype(self.neox, self.where)
            self._notes.add(f"numerics=release: everything in {_name(self.release)}, whatever --dtype says")
        self._sha256 = self.weights.sha256()
        self._tokenizer = find_tokenizer(self.neox, files.folders, options)
        self._check_vocabulary()

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return looks_like_neox(folder)

    @classmethod
    def open(cls, location: str, options: dict[str, str]) -> Checkpoint:
        for key, values in (("pos-emb", POS_EMBS), ("numerics", ("exact", "release"))):
            if key in options and options[key] not in values:
                raise unknown(key, options[key], values)
        return cls(location, options)

    def _configure(self) -> DecoderConfig:
        c = self.neox
        return DecoderConfig(
            vocab_size=self.weights.vocabulary,
            layers=c.layers,
            width=c.width,
            heads=c.heads,
            mlp_width=self.weights.mlp_width,
            train_length=c.train_length,
            scheme=self.position.scheme,
            scheme_options=self.position.options,
            norm_epsilon=c.norm_epsilon,
            tie_embeddings=not self.weights.untied,
            activation=c.activation,
            norm=c.norm,
            parallel_residual=c.parallel_residual,
        )

    def _report_clamps(
        self, moved: dict[str, int], intervals: Mapping[str, tuple[float | None, float | None]]
    ) -> None:
        names = {new: old for old, new in self.position.shared.items()}
        for name, count in moved.items():
            lowest, highest = intervals[name.rpartition(".")[2]]
            bounds = f"at least {lowest}" if highest is None else f"within [{lowest}, {highest}]"
            self._notes.add(
                f"{count} of {self.neox.heads} values of {name} ({names.get(name, name)}) were clamped "
                f"to be {bounds}, as the release does"
            )

    def _refuse_layer_scaling(self, *, release: bool) -> None:
        """With a bias, apply-query-key-layer-scaling changes more than rounding: it multiplies the bias."""
        position = self.position
        if not self.neox.layer_scaling or (release and isinstance(position, NeoxScheme)):
            return
        if isinstance(position, ForkScheme) or position.biased:
            raise UserError(
                f"{self.where}: apply-query-key-layer-scaling with pos-emb {position.pos_emb} multiplies the "
                "bias by the layer's number; only numerics=release computes that"
            )

    def _check_vocabulary(self) -> None:
        held = self.config.vocab_size
        if self._tokenizer is None:
            self._notes.add(
                f"no tokeniser: only token ids can be scored; all {held} logits stay in the softmax"
            )
            return
        size = self._tokenizer.vocab_size
        if size > held:
            self._notes.add(
                f"the tokeniser has {size} ids, the embedding {held} rows: a text with one of the others is "
                "refused"
            )
        if size < held:
            self._notes.add(
                f"the vocabulary of {size} is padded to {held}: the {held - size} padded logits stay in "
                "the softmax, as in the release"
            )

    @cached_property
    def description(self) -> Description:
        c = self.config
        return Description(
            format="neox",
            scheme=c.scheme_name,
            vocab_size=c.vocab_size,
            parameters=self._parameters,
            train_length=c.train_length,
            seed=self.neox.seed,
            prefix_invariant=self._prefix_invariant,
            max_length=self._max_positions,
            weights_sha256=self._sha256,
            architecture="gpt-neox",
            shape=Shape(
                layers=c.layers,
                width=c.width,
                heads=c.heads,
                kv_heads=c.heads,
                head_dim=c.geometry.head_dim,
                mlp_width=c.mlp_width,
            ),
            stored_dtypes=tuple(sorted(_DTYPES.get(dtype, str(dtype)) for dtype in self.weights.dtypes)),
            details={
                "model": c.to_json(),
                "pos_emb": self.position.pos_emb,
                "shards": self.weights.shards,
                "numerics": f"release in {_name(self.release)}" if self.release else "exact",
                "tokenizer": self._tokenizer.identity if self._tokenizer else None,
            },
            warnings=tuple(self._notes.lines),
        )

    @property
    def tokenizer(self) -> Tokenizer | None:
        return self._tokenizer

    def scheme_parameters(self) -> dict[str, list[float]]:
        if not isinstance(self.position, NeoxScheme) or not self.position.shared:
            return {}
        return {name: tensor.flatten().tolist() for name, tensor in self._scheme_state.items()}

    def set_attention(self, attention: str, device: torch.device, dtype: torch.dtype) -> None:
        if self.release is None:
            self.attention = resolve_backend(
                attention, self._evaluated, self.config.scheme_name, device, dtype
            )
        elif attention != "auto":
            raise UserError(
                f"attention {attention}: numerics=release computes attention as the release does; use auto"
            )

    def compute_dtype(self, dtype: torch.dtype) -> torch.dtype:
        return dtype if self.release is None else self.release

    def load(self, device: torch.device, dtype: torch.dtype) -> LanguageModel:
        if self.release is not None:
            assert isinstance(self.position, NeoxScheme)
            return ReleaseModel(self.decoder(), self.position, self.neox, device, self.release)
        return DecoderModel(self.decoder(), device, dtype, self.attention)

    def decoder(self) -> Decoder:
        """The whole model as a native decoder on CPU, in float32, or float64 where stored so."""
        with torch.device("meta"):
            decoder = Decoder(self.stored_config)
        state = dict(self.weights.merged())
        state |= {f"scheme.{name}": tensor.clone() for name, tensor in self._scheme_state.items()}
        if self.config.tie_embeddings:
            state["head.weight"] = state["embedding.weight"]
        decoder.load_state_dict(state, strict=True, assign=True)
        if self.config.tie_embeddings:
            decoder.head.weight = decoder.embedding.weight
        if self.config is not self.stored_config:
            decoder.set_scheme(self.config)
        return decoder


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
