"""Where the files of a GPT-NeoX checkpoint are; nothing outside its folder is ever opened.

    DIR/latest                                         the name of the step's folder
    DIR/global_stepN/layer_XX-model_YY-model_states.pt XX the layer's index in the pipeline, YY the shard
    DIR/global_stepN/configs/*.yml or DIR/configs/*.yml

Source: DeepSpeed's ``PipelineModule.save_state_dict`` (file names) and EleutherAI/gpt-neox,
``megatron/checkpointing.py`` (``save_ds_checkpoint``: the folder and its configs). Of a pipeline with
L layers, 0 is the embedding, 2..L+1 the layers, L+3 the final norm and L+4 the untied head; the other
numbers are functions without weights.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from kerple_eval.support.files import inside, is_file, is_folder
from kerple_eval.support.readers import quoted
from kerple_eval.types import UserError

_STEP = re.compile(r"global_step\d+")
_LAYER = re.compile(r"layer_(\d+)-model_(\d+)-model_states\.pt")
_CONFIGS = ("*.yml", "*.yaml", "*.json")


@dataclass(frozen=True, slots=True)
class NeoxFiles:
    step: Path
    folders: tuple[Path, ...]  # where a tokeniser may lie: the step's, the checkpoint's
    configs: tuple[Path, ...]
    layers: dict[tuple[int, int], Path]  # (index in the pipeline, shard) -> file

    @property
    def shards(self) -> int:
        return 1 + max(shard for _, shard in self.layers)

    def of(self, index: int, shards: int) -> list[Path]:
        """One layer's files in the order of the shards; a missing one is named."""
        return [self.layers.get((index, shard)) or self._missing(index, shard) for shard in range(shards)]

    def _missing(self, index: int, shard: int) -> Path:
        name = f"layer_{index:02d}-model_{shard:02d}-model_states.pt"
        other = any(i == index for i, _ in self.layers)
        what = f"model-parallel shard {shard}" if other else f"layer file {index}"
        raise UserError(f"{self.step}: {what} is missing: no {name}")


def looks_like_neox(folder: Path) -> bool:
    """By names alone: layer files, or a step's folder with them."""
    try:
        steps = [folder, *(p for p in folder.glob("global_step*") if _STEP.fullmatch(p.name))]
        return any(_LAYER.fullmatch(p.name) for step in steps for p in step.glob("layer_*"))
    except OSError:
        return False


def locate(location: str) -> NeoxFiles:
    folder = Path(location)
    if folder.suffix.lower() in (".zip", ".tar", ".gz", ".tgz") and is_file(folder):
        kind = (
            "zip archive, as the release ships them" if folder.suffix.lower() == ".zip" else "packed archive"
        )
        raise UserError(f"{location}: a {kind}; unpack it, and give the folder with `latest`")
    if is_file(folder):
        raise UserError(f"{location}: is a file; neox: takes the folder with `latest` and global_stepN")
    if not is_folder(folder):
        raise UserError(
            f"{location}: no such folder; a GPT-NeoX checkpoint is one with `latest` and global_stepN"
        )
    itself = any(_LAYER.fullmatch(p.name) for p in folder.glob("layer_*"))
    step = folder if itself else _step(folder)
    root = folder.absolute().parent if itself and _STEP.fullmatch(folder.resolve().name) else folder
    layers = {}
    for path in sorted(step.glob("layer_*")):
        if match := _LAYER.fullmatch(path.name):
            layers[int(match[1]), int(match[2])] = inside(path, step if itself else folder)
    if not layers:
        ranks = (
            ": mp_rank files alone (pipe-parallel-size 0) are not read" if any(step.glob("mp_rank_*")) else ""
        )
        raise UserError(f"{step}: no layer_XX-model_YY-model_states.pt{ranks}")
    return NeoxFiles(step, tuple(dict.fromkeys((step, root))), _configs(step, root), layers)


def _step(folder: Path) -> Path:
    latest = folder / "latest"
    if latest.is_symlink() or latest.exists():
        try:
            with inside(latest, folder).open("rb") as file:
                name = file.read(200).decode("utf-8", "replace").strip()
        except OSError as error:
            raise UserError(f"{latest}: cannot be read: {error.strerror}") from None
        if not _STEP.fullmatch(name):
            raise UserError(
                f"{latest}: names {quoted(name)}; expected the name of a folder here, global_stepN"
            )
        step = folder / name
        if not is_folder(step):
            raise UserError(f"{latest}: names {name}, which is not a folder in {folder}")
    else:
        steps = sorted(p for p in folder.glob("global_step*") if _STEP.fullmatch(p.name))
        below = [] if steps else [path for path in sorted(folder.glob("*")) if looks_like_neox(path)]
        if below:
            raise UserError(
                f"{folder}: no checkpoint itself, but holds {', '.join(p.name for p in below[:4])}; give "
                f"neox:{below[0]}"
            )
        if len(steps) != 1:
            names = ", ".join(p.name for p in steps) or "no global_stepN"
            raise UserError(f"{folder}: no file `latest`, and {names} in it; name the step's folder itself")
        (step,) = steps
    if not step.resolve().is_relative_to(folder.resolve()):
        raise UserError(f"{step}: refused: a link that leads out of {folder}")
    return step


def _configs(step: Path, root: Path) -> tuple[Path, ...]:
    """The step's own configuration files, else the checkpoint's."""
    for folder in (step, root):
        configs = sorted(p for pattern in _CONFIGS for p in (folder / "configs").glob(pattern))
        if configs:
            return tuple(inside(path, folder) for path in configs)
    raise UserError(
        f"{step}: no configuration: expected configs/*.yml there or in {root}, with num-layers, hidden-size, "
        "num-attention-heads, seq-length and pos-emb"
    )
