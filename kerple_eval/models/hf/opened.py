"""A checkpoint of transformers, opened: its options, files, configuration, and its model without weights.

Everything is validated here, from headers and on the meta device, before any weight is loaded.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from kerple_eval.models.hf import gguf, gguf_claims
from kerple_eval.models.hf.files import (
    ADAPTER,
    CONFIG,
    check_links,
    find_weights,
    locate,
    only_gguf,
    stamp,
)
from kerple_eval.models.hf.foreign import foreign
from kerple_eval.models.hf.gguf import some
from kerple_eval.models.hf.placement import Placement
from kerple_eval.models.hf.quantised import Quantisation
from kerple_eval.models.hf.rope import Extension, rope_types, serves
from kerple_eval.models.hf.sizes import check_sizes
from kerple_eval.models.user_code import load_module, sources_sha256
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

if TYPE_CHECKING:
    from kerple_eval.models.hf.adapters import Adapter
    from kerple_eval.models.hf.extension import Method

OPTIONS = ("gguf", "tokenizer", "trust-remote-code", "import", "adapter", "devices", "parallel")


class Opened:
    """What ``hf:LOCATION,options`` names.

    Raises:
        UserError: what is wrong with which file or option.
    """

    adapter: Adapter | None = None
    method: Method | None = None
    merged: bool = False  # whether an adapter goes into the weights
    extension: Extension | None = None  # the method's frequencies

    def __init__(self, location: str, options: dict[str, str]) -> None:
        from kerple_eval.models.hf import config as configs  # noqa: PLC0415 - transformers, torch
        from kerple_eval.models.hf import weights as hf_weights  # noqa: PLC0415
        from kerple_eval.models.hf.tokenizer import read_tokenizer  # noqa: PLC0415

        options = dict(options)
        self._changes = {key: options.pop(key) for key in list(options) if key not in OPTIONS}
        self.placement = Placement.from_options(options)
        self.imported = _imported(options["import"]) if "import" in options else None
        flag = options.get("trust-remote-code", "false")
        if flag not in ("true", "false"):
            raise UserError(f"hf: trust-remote-code={flag}: expected true or false")
        remote = flag == "true"
        with configs.quiet():
            self._find_files(location, options.get("gguf"), options.get("adapter"), code=remote)
            self.headers = hf_weights.headers(self.weights)
            raw = self._read_config(remote=remote)
            self._build(remote=remote)
            self.tokenizer = read_tokenizer(self._source, raw, options.get("tokenizer"))
        self.vocabulary = self._vocabulary()
        if self.tokenizer is not None and self.tokenizer.vocab_size > self.vocabulary:
            self.warnings += (
                f"the tokeniser has {self.tokenizer.vocab_size} ids, the model's vocabulary "
                f"{self.vocabulary}: a text with one of the others is refused",
            )

    def _find_files(self, location: str, file: str | None, adapter: str | None, *, code: bool) -> None:
        """Where the checkpoint is, its weight files, and what transformers reads it from (``_source``)."""
        self.folder = locate(location, file, code=code)
        if adapter is not None or (self.folder.root / ADAPTER).exists():
            from kerple_eval.models.hf.adapters import find  # noqa: PLC0415 - torch

            self.adapter = find(self.folder, adapter)
            if adapter is None:
                self.folder = self.adapter.locate_base(file, code=code)
        if self.folder.gguf is None and (only := only_gguf(self.folder.root)):
            self.folder = replace(self.folder, gguf=only)
        root = self.folder.root
        check_links(root)
        self.where = str(root / (self.folder.gguf or CONFIG))
        self.weights = find_weights(self.folder)
        self._source = self.folder
        if self.weights.kind == "gguf":
            need(("gguf", "accelerate"))
            self.gguf_path = self._whole_gguf(self.weights.files)
            self._source = replace(self.folder, root=self.gguf_path.parent, gguf=self.gguf_path.name)

    def _whole_gguf(self, files: tuple[Path, ...]) -> Path:
        if len(files) == 1:
            return files[0]
        self._joined = gguf.joined(files, tuple(stamp(file) for file in files))  # ends with its last holder
        return self._joined.path / files[0].name

    def _read_config(self, *, remote: bool) -> dict[str, Any]:
        """The raw configuration, its sizes checked, and ``config`` as transformers reads it."""
        from kerple_eval.models.hf import config as configs  # noqa: PLC0415
        from kerple_eval.models.hf.config_facts import train_length  # noqa: PLC0415

        shapes = [header.shape for header in self.headers.values()]
        if self.weights.kind == "gguf":
            check_sizes(gguf.stated_sizes(self.gguf_path), shapes, self.where)
        raw = configs.raw_config(self._source)
        check_sizes(raw, shapes, self.where)
        if self.weights.kind == "gguf":
            raw = gguf_claims.claim(raw, self.gguf_path, self.headers)
        self.fingerprint = configs.fingerprint(raw)
        self.quantisation = Quantisation.of(raw, self.where)
        self.config = configs.build_config(raw, self.folder, remote=remote)
        self.text = configs.text_config(self.config, self.where)
        self.train_length = train_length(self.text, raw)
        self.warnings = _warnings(self.folder.note, self.text, raw, remote=remote)
        if self.imported is not None:
            self.warnings += (f"Python code was run: the package {self.imported[0]} (import=)",)
        if self._changes:
            self._extend()
        if self.weights.kind == "gguf":
            self.warnings += tuple(
                gguf_claims.check_scaling(self.gguf_path, self.headers, self.extension, self.text)
            )
        return raw

    def _extend(self) -> None:
        """``method``, and its frequencies set in the configuration."""
        from kerple_eval.models.hf.config_facts import shape  # noqa: PLC0415
        from kerple_eval.models.hf.extension import read_method  # noqa: PLC0415

        with foreign(self.where, "its sizes cannot be read"):
            known = (*OPTIONS, "rope")
            sizes = shape(self.text)
            self.method = read_method(self._changes, self.text, sizes, self.train_length, self.where, known)
        self.extension = self.method.frequencies
        if self.extension is None:
            return
        with foreign(self.where, f"{self.extension.kind} cannot be set"):
            replaced = self.extension.apply(self.text, self.where)
        if replaced:
            self.warnings += (f"{self.extension.kind} replaces the config's own {replaced}",)

    def _build(self, *, remote: bool) -> None:
        """``model_class``, and ``empty``: the model without weights, its tensors those of the files."""
        from kerple_eval.models.hf import config as configs  # noqa: PLC0415
        from kerple_eval.models.hf import weights as hf_weights  # noqa: PLC0415

        self.model_class = configs.model_class(self.config, self.folder, remote=remote)
        self.own_code = not self.model_class.__module__.startswith("transformers.")
        if self.weights.kind == "gguf":
            self.empty = hf_weights.empty(self.model_class, self.config, self.where)
            gguf_claims.check_tensors(self.empty, self.config, self.gguf_path, self.headers)
        else:
            self.empty, left_out = self._checked()
            if left_out:
                name = type(self.empty).__name__
                self.warnings += (f"tensors in the files that {name} leaves out: {some(left_out)}",)
        self.placement.check(self.empty, self.weights.kind, self.where)
        if self.quantisation is not None:
            self._check_quantised(self.quantisation)
        if self.adapter is not None:
            self._fit(self.adapter)
        if self.placement.word and self.method is not None and self.method.modifiers:
            raise UserError(
                f"{self.where}: {next(iter(self._changes))}= replaces the attention of a model on one "
                f"device; leave {self.placement.word} out"
            )
        if self.extension is not None and not serves(self.empty, self.extension):
            raise UserError(
                f"{self.where}: {type(self.empty).__name__} has no rotary positions that "
                f"{self.extension.kind} could extend"
            )
        if self.method is not None and not any("rope" in name or name == "unknown" for name in self.layers):
            raise UserError(
                f"{self.where}: {next(iter(self._changes))}= extends rotary positions, and "
                f"{type(self.empty).__name__} has none"
            )

    def _checked(self) -> tuple[Any, list[str]]:
        """The model without weights, and tensors that its class leaves out, once every tensor has a place."""
        from kerple_eval.models.hf import weights as hf_weights  # noqa: PLC0415

        headers = self.headers
        if self.quantisation is not None:
            empty = hf_weights.empty(self.model_class, self.config, self.where)
            plain = self.quantisation.plain(headers, empty, str(self.weights.files[0]))
            if plain is None:
                return empty, []
            headers = plain
        return hf_weights.check(self.model_class, self.config, self.weights, headers)

    def _check_quantised(self, how: Quantisation) -> None:
        """What goes with packed weights; the rest of what was asked for needs plain ones."""
        if self.weights.kind != "safetensors":
            raise UserError(
                f"{self.where}: quantised weights are read from safetensors, not {self.weights.kind}"
            )
        if self.placement.tensor:
            raise UserError(
                f"{self.where}: parallel=tensor needs plain weights ({how.method}); use devices=auto"
            )
        if self.method is not None and self.method.modifiers:
            raise UserError(
                f"{self.where}: {next(iter(self._changes))}= replaces the attention of plain weights, and "
                f"these are quantised ({how.method})"
            )
        unpacked = ", unpacked into the run's dtype" if how.method == "fp8" else ""
        self.warnings += (f"the weights are quantised ({how.method}){unpacked}",)

    def _fit(self, adapter: Adapter) -> None:
        """The adapter fits the model; ``merged``: whether it goes into the weights."""
        from kerple_eval.models.hf import weights as hf_weights  # noqa: PLC0415

        if self.placement.tensor:
            raise UserError(f"{self.where}: parallel=tensor loads no adapter; devices=auto does")
        can = adapter.fits(
            lambda: hf_weights.empty(self.model_class, self.config, self.where), self.folder.name
        )
        self.merged = can and not self.placement.word and self.quantisation is None
        how = "merged into the weights" if self.merged else "computed beside the weights"
        self.warnings += (f"adapter ({adapter.kind}) on {self.folder.name}, {how}",)
        if self.method is not None and self.method.modifiers and not self.merged:
            raise UserError(
                f"{self.where}: {next(iter(self._changes))}= replaces the attention of plain weights, and "
                "the adapter cannot be merged into them"
            )

    def _vocabulary(self) -> int:
        size = getattr(self.text, "vocab_size", None)
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise UserError(
                f"{self.where}: vocab_size must be a whole number, at least 1, got {quoted(size)}"
            )
        return size

    @cached_property
    def layers(self) -> list[str]:
        """The scheme of each layer; ``unknown`` where nothing can be said of any."""
        from kerple_eval.models.hf.layers import layer_schemes  # noqa: PLC0415

        with foreign(self.where, "its positions cannot be read"):
            names = layer_schemes(type(self.empty), self.empty.config) or ["unknown"]
        return names if self.method is None else self.method.renamed(names, self.text)

    def special_ids(self) -> set[int]:
        """Ids that a model may treat in another way than text: markers of the configuration and tokeniser."""
        stated = [getattr(self.text, name, None) for name in dir(self.text) if name.endswith("_token_id")]
        marked = [] if self.tokenizer is None else self.tokenizer.special_ids
        ids = [number for part in stated for number in (part if isinstance(part, list | tuple) else [part])]
        return {number for number in (*ids, *marked) if isinstance(number, int)}


def _imported(name: str) -> tuple[str, str | None]:
    """The module's name and the sha256 of its sources, after it was imported."""
    module = load_module(name, f"hf: import={name}")
    return name, sources_sha256(module)


def need(packages: tuple[str, ...]) -> None:
    for package in packages:
        if find_spec(package) is None:
            raise UserError(f"hf: needs {package}: pip install 'kerple-eval[hf]'")


def _warnings(note: str | None, text: Any, raw: dict[str, Any], *, remote: bool) -> tuple[str, ...]:
    """What a reader should know of how this checkpoint was read."""
    warnings = [] if note is None else [note]
    if remote:
        warnings.append("Python code of the checkpoint was run (trust-remote-code=true)")
    elif "auto_map" in raw:
        warnings.append(
            f"auto_map names code of the checkpoint, which was not run: {text.model_type} is transformers' "
            "own here; trust-remote-code=true would run the checkpoint's"
        )
    types = [name for name in rope_types(text) if name != "default"]
    if types:
        warnings.append(
            f"its config scales rotary positions ({', '.join(types)}); the trained length is the one it "
            "gives with that scaling"
        )
    return tuple(warnings)
