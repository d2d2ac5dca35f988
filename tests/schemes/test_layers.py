"""The schemes of a model's layers as one text."""

from __future__ import annotations

import pytest

from kerple_eval.schemes.layers import format_layers, parse_layers
from kerple_eval.schemes.spelling import parse_scheme
from kerple_eval.types import UserError
from tests.helpers.cases import each_case


def test_layers_are_counted() -> None:
    assert format_layers(["rope"] * 12) == "rope"
    assert format_layers(["rope", "rope", "rope", "nope"]) == "rope 3/4 + nope 1/4"
    five = ["rope,window=512"] * 5 + ["rope"]
    assert format_layers(five * 3) == "rope,window=512 15/18 + rope 3/18"
    assert format_layers(["nope", "rope"]) == "nope 1/2 + rope 1/2"  # equal counts: in the layers' order
    assert format_layers(["recurrent", "alibi", "recurrent"]) == "recurrent 2/3 + alibi 1/3"


def read(text: str, layers: int) -> list[str]:
    """The scheme of each layer; what is written of it reads back to the same."""
    spec = parse_scheme(text)
    assert parse_scheme(str(spec)) == spec
    return [str(part) for part in parse_layers(dict(spec.options), layers)]


@each_case(
    ("text", "layers", "expected"),
    [
        ("layers: (rope,window=512)*3 (nope)", 4, ["rope,window=512"] * 3 + ["nope"]),
        ("layers: (rope,window=512)*3 (nope)", 8, (["rope,window=512"] * 3 + ["nope"]) * 2),
        ("layers:(rope)", 3, ["rope"] * 3),
        ("layers: ( rope )  * 2(nope)(rope) ", 4, ["rope", "rope", "nope", "rope"]),
        ("layers: (rope:base=500,fraction=0.5) (alibi)", 2, ["rope:base=500,fraction=0.5", "alibi"]),
        ("layers: (kernel: -r1*log(1+(r2*D)))*2", 2, ["kernel:formula=-r1*log(1+(r2*D))"] * 2),
        ("layers:parts=(rope) (nope)", 2, ["rope", "nope"]),
    ],
)
def test_parts_are_cycled_over_the_layers(text: str, layers: int, expected: list[str]) -> None:
    assert read(text, layers) == expected


@each_case(
    ("text", "message"),
    [
        (
            "layers: (rope)*3 (nope)",
            "its parts are for 4 layers, and the model's 6 are no whole number",
        ),
        ("layers: (rope)*999999999", "for 999999999 layers, and the model's 6"),
        ("layers: (rope)*0 (nope)", "a part for 0 layers; leave it out"),
        ("layers: rope nope", "expected a scheme in parentheses at 'rope nope', as in layers: "),
        ("layers: (rope) nope", "expected a scheme in parentheses at 'nope'"),
        ("layers: (rope", "expected a scheme in parentheses at '\\(rope'"),
        ("layers: (rope)) (nope)", "expected a scheme in parentheses at '\\) \\(nope\\)'"),
        ("layers: (rope)*x", "expected a scheme in parentheses at '\\*x'"),
        ("layers: (rope)*-1", "expected a scheme in parentheses at"),
        ("layers: (layers: (rope))*2", "a part is a scheme, not a mix in turn"),
        ("layers: ()*2", "a part without a scheme"),
        ("layers: (rop)*2", "unknown scheme 'rop': did you mean 'rope'"),
        ("layers", "layers takes schemes in parentheses and nothing else, as in layers: "),
        ("layers:", "nothing after the colon"),
        ("layers: parts=", "no parts; expected schemes in parentheses"),
    ],
)
def test_a_mix_that_does_not_add_up_is_one_line(text: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        read(text, 6)
    assert "\n" not in str(caught.value)
