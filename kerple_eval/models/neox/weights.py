"""The weight files of a GPT-NeoX checkpoint: found, checked against the configuration, merged.

Layout in :mod:`files`, axes in :mod:`tensors`. Nothing is copied before a whole tensor is
asked for: files are memory-mapped, one layer's shards at a time.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from kerple_eval.models.neox.config import NeoxConfig
from kerple_eval.models.neox.files import NeoxFiles
from kerple_eval.models.neox.position import Position, check_buffers
from kerple_eval.models.neox.tensors import (
    COLUMNS,
    ROWS,
    Notes,
    Rule,
    check,
    flat,
    layer_rules,
    merge,
    native_layer,
    norm_rules,
)
from kerple_eval.models.pickles import load_tensors
from kerple_eval.types import UserError

EMBEDDING, FINAL = "word_embeddings.weight", "final_linear.weight"
_SPARE = "post_attention_layernorm"  # stored but unused where gpt_j_tied shares one norm


class NeoxWeights:
    def __init__(self, files: NeoxFiles, config: NeoxConfig, notes: Notes) -> None:
        self.files = files
        self.neox = config
        self.notes = notes
        self.dtypes: set[torch.dtype] = set()
        self.shards = max(files.shards, config.shards or 1)
        if config.heads % self.shards:
            raise UserError(f"{files.step}: {config.heads} heads do not divide into {self.shards} shards")
        self.last = config.layers + 1  # the last layer's index in the pipeline; the first is 2
        self.untied = self._is_untied()
        self.paths = self._claim()
        self._rules: dict[int, dict[str, Rule]] = {}
        self._scheme_names: set[str] = set()
        self.embedding, self.layer = self._read(0)[0], self._read(2)[0]
        table, inner = self.embedding.get(EMBEDDING), self.layer.get("mlp.dense_4h_to_h.weight")
        if table is None or table.dim() != 2:
            raise UserError(f"{self.paths[0][0]}: missing tensor {EMBEDDING} [vocabulary, hidden size]")
        if table.shape[1] != config.width:
            raise UserError(
                f"{self.paths[0][0]}: hidden-size is {config.width}, but {EMBEDDING} has shape "
                f"{list(table.shape)}"
            )
        self.vocabulary = table.shape[0] * self.shards
        self.mlp_width = config.mlp_width or 4 * config.width
        self._gated = config.activation == "geglu"
        if inner is not None and inner.dim() == 2:
            stored = inner.shape[1] * self.shards
            # Gated ones have int(8/3 W) or 2 W, and later versions round up to multiples of 256.
            if config.mlp_width is None and (self._gated or stored == -(-self.mlp_width // 256) * 256):
                self.mlp_width = stored
            if self.mlp_width != stored:
                raise UserError(
                    f"{self.paths[2][0]}: tensor mlp.dense_4h_to_h.weight has shape {list(inner.shape)}, "
                    f"expected {[config.width, self.mlp_width // self.shards]}"
                )
        if self.mlp_width % self.shards or config.width % self.shards:
            raise UserError(f"{files.step}: the MLP's width does not divide into {self.shards} shards")
        self._tied_norms = config.parallel_residual and config.tied_norms

    def _is_untied(self) -> bool:
        """By ``no-weight-tying`` (absent: false); a head's file must agree."""
        heads = [path for (index, _), path in self.files.layers.items() if index == self.last + 3]
        declared = self.neox.untied
        if declared is None and heads:
            self.notes.add("the configuration has no no-weight-tying; an untied head exists and is used")
            return True
        if heads and not declared:
            raise UserError(f"{heads[0]}: an untied head, but no-weight-tying is false")
        return bool(declared)

    def _claim(self) -> dict[int, list[Path]]:
        """Index in the pipeline -> the shards' files; refuses a missing or an unexpected one."""
        last = self.last
        stored = 1 + max((index for index, _ in self.files.layers if index < last + 2), default=0)
        if self.neox.layers > stored:
            raise UserError(
                f"{self.files.step}: layer file {stored} is missing: num-layers is {self.neox.layers}"
            )
        indices = [0, *range(2, last + 1), last + 2, *([last + 3] if self.untied else [])]
        for (index, _), path in self.files.layers.items():
            if index not in indices:
                raise UserError(
                    f"{path}: no part of the model: with num-layers {self.neox.layers} its layers are "
                    f"files 2 to {last}"
                )
        return {index: self.files.of(index, self.shards) for index in indices}

    def _read(self, index: int) -> list[dict[str, Tensor]]:
        """One layer's tensors, memory-mapped: one dictionary per shard."""
        return [flat(load_tensors(path), path) for path in self.paths[index]]

    def _rules_of(self, index: int, shards: list[dict[str, Tensor]], position: Position) -> dict[str, Rule]:
        c, rows = self.neox, self.vocabulary // self.shards
        if index == 0:
            embedded = position.embedding_rules(c)
            self._scheme_names |= set(embedded)
            return {EMBEDDING: Rule((rows, c.width), ROWS), **embedded}
        if index <= self.last:
            spare = norm_rules(_SPARE, c.width, c.norm) if self._tied_norms else {}
            positional = position.layer_rules(c, self.shards)
            self._scheme_names |= set(positional)
            return {
                **layer_rules(
                    width=c.width,
                    mlp_width=self.mlp_width,
                    shards=self.shards,
                    norm=c.norm,
                    gated=self._gated,
                    summed=c.parallel_residual,
                    tied_norms=self._tied_norms,
                ),
                **positional,
                **{name: rule for name, rule in spare.items() if name in shards[0]},
            }
        if index == self.last + 2:
            return norm_rules("norm", c.width, c.norm)
        by_columns = Rule((self.vocabulary, c.width // self.shards), COLUMNS)
        stored = tuple(shards[0][FINAL].shape) if FINAL in shards[0] else ()
        return {FINAL: by_columns if stored == by_columns.shape else Rule((rows, c.width), ROWS)}

    def check(self, position: Position) -> dict[str, Tensor]:
        """Check every file against the configuration; returns the scheme's parameters.

        Where one scheme serves all layers, their copies must be equal.
        """
        state: dict[str, Tensor] = {}
        for index, paths in self.paths.items():
            shards = self._read(index)
            rules = self._rules[index] = self._rules_of(index, shards, position)
            check(shards, rules, paths, self.notes)
            check_buffers(position, self.neox, shards, paths)
            self.dtypes |= {tensors[name].dtype for tensors in shards for name in rules}
            for name, rule in rules.items():
                if name in self._scheme_names:
                    tensor = merge(name, shards, rule, torch.float64)
                    key = f"{index - 2}.{name}" if position.per_layer else name
                    if not torch.equal(state.setdefault(key, tensor), tensor):
                        raise UserError(
                            f"{paths[0]}: {name} differs from that of earlier layers, but "
                            "all layers share one"
                        )
        return position.native(state, self.neox)

    @property
    def wide(self) -> torch.dtype:
        """The dtype to read in: float32, or float64 where any tensor is stored so."""
        return torch.float64 if torch.float64 in self.dtypes else torch.float32

    def merged(self) -> Iterator[tuple[str, Tensor]]:
        """Native name and tensor, without the scheme's parameters; one layer's files are open at a time."""
        ends = {EMBEDDING: "embedding.weight", FINAL: "head.weight", "norm.scale": "norm.weight"}
        unused = (_SPARE + ".",) if self._tied_norms else ()
        for index, paths in self.paths.items():
            shards, rules = self._read(index), self._rules[index]
            check(shards, rules, paths, Notes())
            tensors = {
                name: merge(name, shards, rule, self.wide)
                for name, rule in rules.items()
                if name not in self._scheme_names and not name.startswith(unused)
            }
            if 2 <= index <= self.last:
                yield from native_layer(index - 2, tensors, self.neox.heads, self._tied_norms).items()
            else:
                yield from ((ends.get(name, name), tensor) for name, tensor in tensors.items())

    def sha256(self) -> str:
        """Over all weight files, one after the other in the order of their names."""
        digest = hashlib.sha256()
        for path in sorted(path for paths in self.paths.values() for path in paths):
            try:
                with path.open("rb") as file:
                    while chunk := file.read(1 << 22):
                        digest.update(chunk)
            except OSError as error:
                raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        return digest.hexdigest()
