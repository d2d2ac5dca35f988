"""The checkpoint formats, one entry each. Imports no torch."""

from __future__ import annotations

from kerple_eval.support.registry import Entry, Registry

CHECKPOINT_FORMATS = Registry("checkpoint format", "kerple_eval.formats", Entry, (
    Entry(
        "native", "kerple_eval.models.native:NativeCheckpoint",
        "native:DIR, what `kerple-eval train` writes: config.json, model.safetensors",
    ),
    Entry(
        "neox", "kerple_eval.models.neox.checkpoint:NeoxCheckpoint",
        "neox:DIR, GPT-NeoX and the KERPLE release: latest, global_stepN/layer_XX-model_YY-model_states.pt",
    ),
    Entry(
        "zoo", "kerple_eval.models.native:ZooCheckpoint",
        "zoo:NAME, the checkpoints that this package ships; zoo:NAME-sN, further seeds in the clone",
    ),
    Entry(
        "python", "kerple_eval.models.python:PythonCheckpoint",
        "python:FILE.py:FUNCTION or python:module:function, your own code that returns a model; it is run",
    ),
    Entry(
        "hf", "kerple_eval.models.hf.checkpoint:HfCheckpoint",
        "hf:PATH_OR_ID[@revision], causal models of transformers: safetensors, GGUF or pickled",
    ),
))  # fmt: skip
