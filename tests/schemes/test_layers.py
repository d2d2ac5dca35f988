"""The schemes of a model's layers as one text."""

from __future__ import annotations

from kerple_eval.schemes.layers import format_layers


def test_layers_are_counted() -> None:
    assert format_layers(["rope"] * 12) == "rope"
    assert format_layers(["rope", "rope", "rope", "nope"]) == "rope 3/4 + nope 1/4"
    five = ["rope,window=512"] * 5 + ["rope"]
    assert format_layers(five * 3) == "rope,window=512 15/18 + rope 3/18"
    assert format_layers(["nope", "rope"]) == "nope 1/2 + rope 1/2"  # equal counts: in the layers' order
    assert format_layers(["recurrent", "alibi", "recurrent"]) == "recurrent 2/3 + alibi 1/3"
