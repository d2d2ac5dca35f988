"""Quantised checkpoints against the same model loaded by transformers."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import kerple_eval
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.quantised import PACKAGES
from kerple_eval.records.cell import Cell
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.command import Cli
from tests.helpers.hf_folders import CPU, transformers

IDS = [3 + i * 7 % 90 for i in range(24)]
SIZES = {"hidden_size": 64, "intermediate_size": 128}  # block sizes of 64


def by_bitsandbytes(bits: int) -> Callable[[Path, Path], None]:
    def write(plain: Path, folder: Path) -> None:
        config = transformers.BitsAndBytesConfig(**{f"load_in_{bits}bit": True})
        write_by_transformers(plain, folder, config)

    return write


def by_torchao(plain: Path, folder: Path) -> None:
    from torchao.quantization import Int8WeightOnlyConfig  # noqa: PLC0415

    write_by_transformers(plain, folder, transformers.TorchAoConfig(Int8WeightOnlyConfig()))


def write_by_transformers(plain: Path, folder: Path, config: Any) -> None:
    transformers.AutoModelForCausalLM.from_pretrained(
        plain, quantization_config=config, device_map="cpu", dtype=torch.float32
    ).save_pretrained(folder)


def by_hand(plain: Path, folder: Path) -> None:
    """fp8 by blocks of 128 x 128, as DeepSeek stores it: weight = fp8 weight * scale of its block."""
    shutil.copytree(plain, folder)
    state = load_file(folder / "model.safetensors")
    for name, weight in list(state.items()):
        if "proj" in name:
            scale = weight.abs().max() / 448
            state[name] = (weight / scale).to(torch.float8_e4m3fn)
            rows, columns = (-(-size // 128) for size in weight.shape)
            state[f"{name}_scale_inv"] = scale.expand(rows, columns).contiguous()
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    settings = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}
    folders.edit_config(folder, quantization_config=settings)


def by_compressed_tensors(plain: Path, folder: Path) -> None:
    """4 bits, packed into int32, with a scale for each row."""
    from compressed_tensors.compressors import ModelCompressor  # noqa: PLC0415
    from compressed_tensors.quantization import (  # noqa: PLC0415
        QuantizationArgs,
        QuantizationConfig,
        QuantizationScheme,
        apply_quantization_config,
    )

    model = transformers.AutoModelForCausalLM.from_pretrained(plain)
    weights = QuantizationArgs(num_bits=4, strategy="channel", symmetric=True)
    groups = {"all": QuantizationScheme(targets=["Linear"], weights=weights)}
    config = QuantizationConfig(
        config_groups=groups, ignore=["lm_head"], format="pack-quantized", quantization_status="compressed"
    )
    apply_quantization_config(model, config)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.abs().amax(1, keepdim=True) / 7
    compressor = ModelCompressor(quantization_config=config)
    compressor.compress_model(model)
    model.save_pretrained(folder)
    compressor.update_config(str(folder))


#: name -> (method, package, writer)
KINDS = {
    "bnb-4bit": ("bitsandbytes", "bitsandbytes", by_bitsandbytes(4)),
    "bnb-8bit": ("bitsandbytes", "bitsandbytes", by_bitsandbytes(8)),
    "torchao-int8": ("torchao", "torchao", by_torchao),
    "compressed-int4": ("compressed-tensors", "compressed_tensors", by_compressed_tensors),
    "fp8": ("fp8", "accelerate", by_hand),
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**folders.sized(**SIZES)))
    return folders.save(tmp_path_factory.mktemp("plain"), model)


@pytest.fixture(scope="module")
def packed(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root, made = tmp_path_factory.mktemp("packed"), dict[str, Path]()

    def folder(kind: str) -> Path:
        _, package, write = KINDS[kind]
        if find_spec(package) is None:
            pytest.skip(f"{package} is not installed")
        if kind not in made:
            write(plain, root / kind)
            made[kind] = root / kind
        return made[kind]

    return folder


@torch.inference_mode()
def ours(folder: Path, **options: str) -> torch.Tensor:
    model = HfCheckpoint.open(str(folder), options).load(CPU, torch.float32)
    return torch.cat(list(model.logits(torch.tensor([IDS]), len(IDS))), dim=1).float()


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_transformers_own_loading(
    kind: str, packed: Callable[[str], Path], plain: Path
) -> None:
    folder = packed(kind)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        folder, device_map="cpu", dtype=torch.float32
    ).eval()
    with torch.inference_mode():
        expected = theirs(torch.tensor([IDS])).logits.float()
    found = ours(folder)
    assert float((found - expected).abs().max()) < 1e-5
    assert float((found - ours(plain)).abs().max()) > 1e-4  # it is not the plain model
    about = HfCheckpoint.open(str(folder), {}).description
    assert about.details["quantisation"] == KINDS[kind][0]
    assert about.parameters == HfCheckpoint.open(str(plain), {}).description.parameters
    assert any(f"quantised ({KINDS[kind][0]})" in line for line in about.warnings)
    assert float((ours(folder, devices="auto") - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
def test_a_quantised_model_in_memory(kind: str, packed: Callable[[str], Path], tmp_path: Path) -> None:
    options: dict[str, Any] = {"device_map": "cpu", "dtype": torch.float32}
    model = transformers.AutoModelForCausalLM.from_pretrained(packed(kind), **options)
    run = kerple_eval.evaluate({"m": model}, tokens=IDS * 3, lengths=[16])
    with torch.inference_mode():
        logits = model(torch.tensor([IDS[:16]])).logits[0].float()
    expected = torch.nn.functional.cross_entropy(logits, torch.tensor(IDS[1:17]), reduction="none")
    assert np.abs(run.losses()["loss"].to_numpy()[:16] - expected.numpy()).max() < 1e-5


def test_a_run_records_it(packed: Callable[[str], Path], tmp_path: Path, invoke: Cli) -> None:
    folder = packed("fp8")
    (tmp_path / "ids.jsonl").write_text(json.dumps({"tokens": IDS * 3}))
    done = invoke(
        "run", f"m=hf:{folder}", "--tokens", tmp_path / "ids.jsonl", "--length", "16", "--device", "cpu",
        "--out", tmp_path / "run",
    )  # fmt: skip
    assert done.exit_code == 0, done.stderr
    run = open_run(tmp_path / "run")
    assert run.specification.models[0].other["quantisation"] == "fp8"
    cell = next(run.cells())
    assert isinstance(cell, Cell) and np.isfinite(np.concatenate(cell.losses)).all()
    assert "no native form" in invoke("convert", f"hf:{folder}", tmp_path / "native").stderr


def rewrite(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    file = folder / "model.safetensors"
    with safe_open(file, framework="pt") as header:
        metadata = header.metadata()
    state = load_file(file)
    change(state)
    save_file(state, file, metadata=metadata)


LAYER = "model.layers.1.self_attn.v_proj"


@pytest.mark.parametrize("kind", KINDS)
def test_damaged_ones_are_one_line_before_loading(
    kind: str, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    def refused(change: Callable[[dict[str, torch.Tensor]], Any]) -> str:
        folder = Path(shutil.copytree(packed(kind), tmp_path / "damaged"))
        rewrite(folder, change)
        with pytest.raises(UserError) as error:
            HfCheckpoint.open(str(folder), {})
        shutil.rmtree(folder)
        assert "\n" not in str(error.value)
        return str(error.value)

    def without_layer(state: dict[str, torch.Tensor]) -> None:
        for name in [name for name in state if name.startswith(LAYER)]:
            del state[name]

    assert f"missing tensor {LAYER}" in refused(without_layer)
    assert "missing tensor model.norm.weight" in refused(lambda state: state.pop("model.norm.weight"))
    assert "not claimed by the model: extra.weight" in refused(
        lambda state: state.update({"extra.weight": torch.zeros(2)})
    )
    assert "model.norm.weight has shape [65]" in refused(
        lambda state: state.update({"model.norm.weight": torch.zeros(65)})
    )
    if kind.startswith("bnb"):
        piece = "weight.absmax" if kind == "bnb-4bit" else "SCB"
        assert f"missing tensor {LAYER}.{piece}" in refused(lambda state: state.pop(f"{LAYER}.{piece}"))
    if kind in ("bnb-4bit", "bnb-8bit", "fp8"):
        packed_as = {"bnb-4bit": torch.uint8, "bnb-8bit": torch.int8, "fp8": torch.float8_e4m3fn}[kind]
        short = torch.zeros(3, 3).to(packed_as)
        assert f"{LAYER}.weight has shape [3, 3]" in refused(
            lambda state: state.update({f"{LAYER}.weight": short})
        )


@pytest.mark.parametrize("method", PACKAGES)
def test_a_missing_package_is_named(method: str, plain: Path, tmp_path: Path, monkeypatch: Any) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    folders.edit_config(folder, quantization_config={"quant_method": method})
    monkeypatch.setattr("kerple_eval.models.hf.quantised.find_spec", lambda name: None)
    with pytest.raises(UserError) as error:
        HfCheckpoint.open(str(folder), {})
    names = " ".join(name for _, name in PACKAGES[method])
    assert str(error.value).endswith(f": pip install {names}")
    assert f"quantised ({method})" in str(error.value)


@pytest.mark.parametrize(
    "settings", [{"quant_method": "aqlm"}, {"quant_method": ["x"]}, "gptq2", {"bits": 4}, [1]], ids=str
)
def test_other_methods_are_refused(settings: Any, plain: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(plain, tmp_path / "model"))
    folders.edit_config(folder, quantization_config=settings)
    with pytest.raises(UserError, match=r"the weights are quantised .*supported are bitsandbytes, gptq, awq"):
        HfCheckpoint.open(str(folder), {})


def test_what_does_not_go_with_packed_weights(packed: Callable[[str], Path]) -> None:
    with pytest.raises(UserError, match=r"parallel=tensor needs plain weights \(fp8\); use devices=auto"):
        HfCheckpoint.open(str(packed("fp8")), {"parallel": "tensor"})


@pytest.mark.parametrize("kind", ["bnb-4bit", "fp8"])
def test_an_adapter_is_computed_beside_packed_weights(
    kind: str, packed: Callable[[str], Path], tmp_path: Path
) -> None:
    peft = pytest.importorskip("peft")
    folder = packed(kind)
    options: dict[str, Any] = {"device_map": "cpu", "dtype": torch.float32}
    base = transformers.AutoModelForCausalLM.from_pretrained(folder, **options)
    torch.manual_seed(1)
    tuned = peft.get_peft_model(base, peft.LoraConfig(r=4, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    for parameter in tuned.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    tuned.save_pretrained(tmp_path / "adapter")
    with torch.inference_mode():
        expected = tuned.eval()(torch.tensor([IDS])).logits.float()
    found = ours(folder, adapter=str(tmp_path / "adapter"))
    assert float((found - expected).abs().max()) < 1e-5
    details = HfCheckpoint.open(str(folder), {"adapter": str(tmp_path / "adapter")}).description.details
    assert details["adapter"]["merged"] is False
