"""Adapters written by peft, scored as peft itself loads them."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from kerple_eval import evaluate
from kerple_eval.models.hf import placement
from kerple_eval.models.hf.checkpoint import HfCheckpoint
from kerple_eval.models.hf.files import _needed_files
from kerple_eval.models.open import open_model, parse_model
from kerple_eval.records.run import open_run
from kerple_eval.types import UserError
from tests.helpers import hf_folders as folders
from tests.helpers.cases import each_case
from tests.helpers.command import Cli, refusal
from tests.helpers.hf_folders import CPU, transformers

peft = pytest.importorskip("peft")

IDS = [3 + i * 7 % 90 for i in range(24)]
TASK: dict[str, Any] = {"task_type": "CAUSAL_LM"}
#: name -> (configuration, whether peft can merge it)
KINDS: dict[str, tuple[Callable[[], Any], bool]] = {
    "lora": (lambda: peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **TASK), True),
    "dora": (lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"], **TASK), True),
    "head": (
        lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"], **TASK), True
    ),
    "embedding": (lambda: peft.LoraConfig(r=4, target_modules=["embed_tokens"], **TASK), True),
    "ia3": (
        lambda: peft.IA3Config(
            target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"], **TASK
        ),
        True,
    ),
    "lokr": (lambda: peft.LoKrConfig(r=2, target_modules=["q_proj"], **TASK), True),
    "prompt": (lambda: peft.PromptTuningConfig(num_virtual_tokens=3, **TASK), False),
    "prefix": (lambda: peft.PrefixTuningConfig(num_virtual_tokens=3, **TASK), False),
    "adaption": (lambda: peft.AdaptionPromptConfig(adapter_len=3, adapter_layers=2, **TASK), False),
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folders.save(tmp_path_factory.mktemp("base"), folders.model("llama"))


def write(base: Path, folder: Path, kind: str) -> Path:
    """An adapter of that kind with random weights."""
    torch.manual_seed(1)
    model = peft.get_peft_model(transformers.AutoModelForCausalLM.from_pretrained(base), KINDS[kind][0]())
    for parameter in model.parameters():
        if parameter.requires_grad:
            parameter.data += 0.1 * torch.randn_like(parameter)
    model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def lora(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(base, tmp_path_factory.mktemp("adapters") / "lora", "lora")


@pytest.fixture
def copy(lora: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(lora, tmp_path / "adapter"))


@torch.inference_mode()
def by_peft(base: Path, adapter: Path, *, merge: bool) -> torch.Tensor:
    made = peft.PeftModel.from_pretrained(transformers.AutoModelForCausalLM.from_pretrained(base), adapter)
    if merge:
        made = made.merge_and_unload()
    logits: torch.Tensor = made.eval()(torch.tensor([IDS])).logits
    return logits[:, -len(IDS) :]


@torch.inference_mode()
def ours(location: Path, **options: str) -> torch.Tensor:
    model = HfCheckpoint.open(str(location), options).load(CPU, torch.float32)
    return torch.cat(list(model.logits(torch.tensor([IDS]), len(IDS))), dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_logits_are_those_of_peft_s_own_loading(kind: str, base: Path, tmp_path: Path) -> None:
    adapter = write(base, tmp_path / "adapter", kind)
    found = ours(base, adapter=str(adapter))
    assert float((found - ours(base)).abs().max()) > 0.1  # it does something
    assert float((found - by_peft(base, adapter, merge=False)).abs().max()) < 1e-5
    details = HfCheckpoint.open(str(base), {"adapter": str(adapter)}).description.details
    assert details["adapter"]["merged"] is KINDS[kind][1]
    if KINDS[kind][1]:
        assert float((found - by_peft(base, adapter, merge=True)).abs().max()) < 1e-5


def test_both_hashes_are_recorded_and_the_table_is_the_adapter_s(
    base: Path, lora: Path, tmp_path: Path, invoke: Cli
) -> None:
    (tmp_path / "ids.jsonl").write_text(json.dumps({"tokens": IDS * 3}))
    words = [
        "--tokens",
        tmp_path / "ids.jsonl",
        "--length",
        "16",
        "--device",
        "cpu",
        "--out",
        tmp_path / "run",
    ]
    done = invoke("run", f"plain=hf:{base}", f"tuned=hf:{base},adapter={lora}", f"named={lora}", *words)
    assert done.exit_code == 0, done.stderr
    run = open_run(tmp_path / "run")
    plain, tuned, named = run.specification.models
    weights = hashlib.sha256((lora / "adapter_model.safetensors").read_bytes()).hexdigest()
    assert tuned.other["adapter"]["weights_sha256"] == weights
    assert tuned.other["base_weights_sha256"] == plain.weights_sha256
    assert tuned.weights_sha256 == named.weights_sha256 != plain.weights_sha256
    values = run.summary().set_index("model")["nll"]
    assert values["tuned"] == values["named"] != values["plain"]
    assert "adapter (LORA) on" in invoke("inspect", f"hf:{lora}").output


def test_a_folder_of_an_adapter_is_recognised_and_needs_its_base(
    base: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = json.loads((copy / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    assert open_model(parse_model(str(copy))).description.details["adapter"]["peft_type"] == "LORA"
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for named, said in (
        (None, "names no base model; hf:BASE,adapter=DIR names it"),
        (str(tmp_path / "gone"), "its base model: "),
        (7, "base_model_name_or_path must be a path or a hub id, got 7"),
        (str(copy), "is an adapter itself"),
    ):
        (copy / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": named}))
        with pytest.raises(UserError) as error:
            HfCheckpoint.open(str(copy), {})
        assert said in str(error.value)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ("gpt2", "does not fit"),  # no module of these names
        ("wider", "does not fit"),
        ("deeper", "does not fit"),
    ],
)
def test_an_adapter_of_another_base_is_one_line(other: str, said: str, lora: Path, tmp_path: Path) -> None:
    changes = {"wider": {"hidden_size": 64}, "deeper": {"num_hidden_layers": 3}}
    model = (
        folders.model("gpt2")
        if other == "gpt2"
        else transformers.LlamaForCausalLM(transformers.LlamaConfig(**folders.sized(**changes[other])))
    )
    folder = folders.save(tmp_path / "other", model)
    with pytest.raises(UserError) as error:
        HfCheckpoint.open(str(folder), {"adapter": str(lora)})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_shallower_base(lora: Path, tmp_path: Path) -> None:
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**folders.sized(num_hidden_layers=1)))
    folder = folders.save(tmp_path / "other", model)
    with pytest.raises(UserError, match=r"nothing there takes tensor .*layers\.1\."):
        HfCheckpoint.open(str(folder), {"adapter": str(lora)})


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"megatron_config": {"size": 1}, "megatron_core": "os"}, "megatron_config is set"),
        ({"alora_invocation_tokens": [1]}, "alora_invocation_tokens is set"),
        ({"peft_type": "NO_SUCH"}, "peft_type 'NO_SUCH' is not known to peft"),
        ({"peft_type": ["LORA"]}, "is not known to peft"),
        ({"a_later_setting": 3}, "'a_later_setting' is not known to peft"),
        ({"task_type": "SEQ_CLS"}, "task_type is 'SEQ_CLS', expected CAUSAL_LM"),
        ({"r": "four"}, "does not fit"),
        ({"r": 8}, "does not fit"),
        ({"target_modules": ["q_proj"]}, "nothing there takes tensor"),
        ({"target_modules": ["q_proj", "v_proj", "k_proj"]}, "missing tensor"),
    ],
)  # fmt: skip
def test_settings_that_are_refused(changes: dict[str, Any], said: str, base: Path, copy: Path) -> None:
    settings = json.loads((copy / "adapter_config.json").read_text()) | changes
    (copy / "adapter_config.json").write_text(json.dumps(settings))
    with pytest.raises(UserError) as error:
        HfCheckpoint.open(str(base), {"adapter": str(copy)})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_files_that_are_refused(
    base: Path, copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(location: Path, **options: str) -> str:
        with pytest.raises(UserError) as error:
            HfCheckpoint.open(str(location), options)
        return str(error.value)

    assert "no adapter_config.json" in refused(base, adapter=str(base))
    assert "goes with a base model alone" in refused(copy, adapter=str(copy))
    both = Path(shutil.copytree(base, tmp_path / "both"))
    shutil.copy(copy / "adapter_config.json", both)
    assert "beside a model; take one of them out" in refused(both)
    file = copy / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert "truncated or damaged" in refused(base, adapter=str(copy))
    save_file({"elsewhere.weight": torch.zeros(2)}, file)
    assert "elsewhere.weight" in refused(base, adapter=str(copy))
    file.rename(copy / "adapter_model.bin")
    assert "adapter_model.bin is a pickle, which is not read" in refused(base, adapter=str(copy))
    monkeypatch.setattr("kerple_eval.models.hf.adapters.find_spec", lambda name: None)
    assert "an adapter needs peft: pip install 'kerple-eval[peft]'" in refused(base, adapter=str(copy))


def test_on_a_spread_base(base: Path, lora: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # where peft 0.20 writes a base on disk anew, `/tmp/x` as `tmp/x`
    expected = by_peft(base, lora, merge=False)
    assert float((ours(base, adapter=str(lora), devices="auto") - expected).abs().max()) < 1e-5
    monkeypatch.setattr(placement, "memory", lambda device: {"cpu": 60_000})
    with pytest.raises(UserError, match="layers of the base lie on disk"):
        ours(base, adapter=str(lora), devices="auto")
    assert not list(tmp_path.iterdir())


def test_parallel_tensor_loads_none(base: Path, lora: Path, invoke: Cli) -> None:
    said = refusal(invoke("inspect", f"hf:{base},adapter={lora},parallel=tensor"))
    assert "parallel=tensor loads no adapter" in said


def test_of_a_hub_repository_the_adapter_alone_is_fetched() -> None:
    both = ["adapter_config.json", "adapter_model.safetensors"]
    names = [*both, "README.md", "training_args.bin", "tokenizer.json"]
    for adapter in (False, True):
        assert _needed_files(names, "hf:org/name", None, adapter) == both
    whole = [*names, "config.json", "model.safetensors"]
    assert _needed_files(whole, "hf:org/name", None, True) == both
    assert _needed_files(whole, "hf:org/name", None, False) == [
        "tokenizer.json",
        "config.json",
        "model.safetensors",
    ]


@each_case("kind", sorted(KINDS))
def test_an_adapted_model_in_memory(kind: str, base: Path) -> None:
    """Its numbers are peft's own; where the adapter is in the model's layers, the facts are the model's."""
    torch.manual_seed(1)
    plain = transformers.AutoModelForCausalLM.from_pretrained(base)
    model = peft.get_peft_model(plain, KINDS[kind][0]()).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter) * parameter.requires_grad
    ids = torch.tensor([IDS])
    asked: dict[str, Any] = {"tokens": [IDS], "lengths": [len(IDS) - 1]}
    if kind == "prompt":  # its virtual tokens have logits too
        with pytest.raises(UserError, match="logits of shape"):
            evaluate({"m": model}, **asked)
        return
    run = evaluate({"m": model}, **asked)
    with torch.no_grad():
        logits = model(ids[:, :-1]).logits[0]
    assert run.summary().nll[0] == pytest.approx(
        float(torch.nn.functional.cross_entropy(logits, ids[0, 1:])), 1e-6
    )
    record = run.specification.models[0]
    outside = kind == "prefix"
    assert record.scheme == ("unknown" if outside else "rope")
    assert record.other["architecture"] == ("PeftModelForCausalLM" if outside else "LlamaForCausalLM")
    assert record.other.get("adapter") == (None if outside else {"peft_type": str(model.peft_type.value)})


def test_a_prompt_takes_positions_and_has_no_native_form(tmp_path: Path, invoke: Cli) -> None:
    """GPT-2 of 64 positions behind a prompt of 3: windows of 61 tokens, with peft's own logits."""
    base = folders.save(tmp_path / "base", folders.model("gpt2"))
    adapter = write(base, tmp_path / "adapter", "prompt")
    options = {"adapter": str(adapter)}
    checkpoint = HfCheckpoint.open(str(base), options)
    assert checkpoint.description.max_length == 61
    loaded = checkpoint.load(CPU, torch.float32)
    with torch.no_grad():
        assert sum(part.shape[1] for part in loaded.logits(torch.arange(61)[None], 61)) == 61
    assert float((ours(base, **options) - by_peft(base, adapter, merge=False)).abs().max()) < 1e-5
    done = invoke("convert", f"hf:{base},adapter={adapter}", tmp_path / "native")
    assert "kind PROMPT_TUNING is computed beside the weights, which has no native form" in refusal(done)
