"""The card of a trained checkpoint: its training record, for people."""

from __future__ import annotations

import shlex
from typing import Any

from kerple_eval.schemes.spelling import format_scheme


def card(name: str, model: dict[str, Any], seed: int | None, training: dict[str, Any]) -> str:
    """Markdown from the ``model`` and ``training`` parts of a native checkpoint's config.json."""
    recipe, data, held_out = training["recipe"], training["data"], training["held_out"]
    scheme = format_scheme(model["scheme"], model["scheme_options"], model.get("modifiers", {}))
    lines = [
        f"# {name}",
        "",
        f"A decoder trained at {model['train_length']} tokens with the positional scheme "
        f"`{scheme}`: {model['layers']} layers, width {model['width']}, "
        f"{model['heads']} heads, vocabulary {model['vocab_size']}, "
        f"{training['parameters']:,} parameters.",
        "",
        *_start(training.get("from"), seed),
        *(["```", shlex.join(training["command"]), "```", ""] if "command" in training else []),
        "| | |",
        "|---|---|",
        f"| text | {data['task']}"
        + (f" version {data['version']}" if "version" in data else "")
        + (f", {_flat(data['source'])}" if "source" in data else "")
        + " |",
    ]
    if "licence" in data:
        lines.append(f"| licence of the text | {data['licence']} |")
    lines += [
        f"| split | {data['split']} |",
        *(
            f"| {label} | {data[key]['documents']} documents, {data[key]['bytes']:,} bytes, "
            f"sha256 `{data[key]['text_sha256']}` |"
            for label, key in (("training text", "train"), ("held-out text", "held_out"))
        ),
        f"| tokeniser | {data['tokenizer']} |",
        f"| steps | {recipe['steps']:,} of {recipe['batch']} x {model['train_length']} tokens "
        f"({training['tokens_seen']:,} tokens) |",
        f"| recipe | {_flat({k: v for k, v in recipe.items() if k not in ('steps', 'batch')})} |",
        f"| hours | {training['hours']:.2f} |",
        f"| versions | {_flat(training['versions'])} |",
    ]
    figure = held_out["bits_per_byte"]
    if figure is not None:
        lines.append(f"| held-out bits per byte at {held_out['length']} | **{figure:.4f}** |")
    lines.append(
        f"| held-out loss at {held_out['length']} | {held_out['nll']:.4f} nats per token over "
        f"{held_out['targets']:,} targets, {held_out['protocol']} |"
    )
    baseline = training.get("ngram")
    if baseline is not None:
        lines.append(
            f"| interpolated order-{baseline['order']} byte n-gram (Witten-Bell), same text | "
            f"{baseline['bits_per_byte']:.4f} bits per byte |"
        )
    if held_out["gain_of_last_tenth"] is not None:
        lines.append(f"| gain of the last tenth of the steps | {held_out['gain_of_last_tenth']:.2%} |")
    lines += ["", "| step | training loss | held-out loss (sample) |", "|---|---|---|"]
    lines += [
        f"| {report['step']} | {report['train_loss']:.4f} | {report['held_out_loss']:.4f} |"
        for report in training["curve"]
    ]
    lines += ["", f"Losses in nats per token. Seed {seed}.", ""]
    return "\n".join(lines)


def _start(start: dict[str, Any] | None, seed: int | None) -> list[str]:
    """What a model that was trained on says of where it came from."""
    if start is None:
        return []
    extended = f", extended by `{start['extend']}`" if start["extend"] else ""
    return [
        f"Trained on from `{start['model']}` (`{start['scheme']}`, {start['train_length']} tokens, seed "
        f"{start['seed']}, weights sha256 `{start['weights_sha256']}`){extended}. The order of the text is "
        f"drawn anew from seed {seed}; AdamW begins without moments, the learning rate with its warm-up.",
        "",
    ]


def _flat(values: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in values.items())
