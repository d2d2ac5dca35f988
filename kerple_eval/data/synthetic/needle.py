"""needle: one sentence about a town in varied prose, and a question for its last word at the end.

After Kamradt 2023 (github.com/gkamradt/LLMTest_NeedleInAHaystack: a sentence on San Francisco among
essays, a model judging what is generated) and RULER's ``niah_single`` (Hsieh et al. 2024, arXiv
2404.06654: a word or number for a key). Here town and thing are drawn uniformly out of 16 each, the thing
is scored as targets, and the prose is our own, so numbers are not theirs. A guess among the things is right
with probability 1/16.
"""

from __future__ import annotations

import numpy as np

from kerple_eval.data.synthetic.base import Generator, SyntheticDocument
from kerple_eval.data.synthetic.haystack import Haystack, build
from kerple_eval.data.tokenizer import ModelTokens

INTRO = "These are notes from a long journey."
FILLER = (
    "The road was dry and the dust lay white on the hedges.",
    "We met a shepherd who counted his flock twice and was content.",
    "Rain came in the evening, and the roof of the inn held well.",
    "My companion reads old letters aloud and laughs at the spelling.",
    "There is a bridge of nine arches, of which two have fallen in.",
    "The miller says that the winter was milder than he can remember.",
    "At noon we rested under a chestnut tree and spoke of home.",
    "Bells were rung for a wedding, and the children threw grain.",
    "The ferry waits until it is full, and nobody minds.",
    "I have written down the names of the hills as they were told to me.",
    "A boy sold us plums, and would not say from whose garden.",
    "The horses are tired, but the smith found nothing wrong with them.",
    "In the market they argue about the price of salt.",
    "Fog hid the valley, and we heard the water before we saw it.",
    "The old woman at the gate knew the way and three songs about it.",
    "We slept badly, since the owls are many here.",
    "On the wall of the church someone has painted a ship.",
    "The soldiers have gone, and their fires are still warm.",
    "A letter had come for us and was sent on to another place.",
    "Nothing happened that day, and we were glad of it.",
)
TOWNS = (
    "Arden", "Belmont", "Corvey", "Dunwick", "Elsin", "Farrow", "Glenby", "Harwell",
    "Ilmen", "Jarrow", "Kelso", "Lorne", "Marby", "Norden", "Osmund", "Penrith",
)  # fmt: skip
THINGS = (
    "lantern", "copper", "violin", "ladder", "compass", "barrel", "candle", "hammer",
    "mirror", "needle", "pepper", "ribbon", "saddle", "timber", "velvet", "window",
)  # fmt: skip


class Needle(Generator):
    def make(
        self, model: ModelTokens, length: int, depth: float, rng: np.random.Generator
    ) -> SyntheticDocument:
        town, thing = TOWNS[rng.integers(len(TOWNS))], THINGS[rng.integers(len(THINGS))]
        tells = f"What one should bring from {town} is a"
        hay = Haystack("needle", INTRO, f"{tells} {thing}.", tells, thing, FILLER, True)
        return build(hay, model, length, depth, rng)
