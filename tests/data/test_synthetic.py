"""Made documents: exactly L + 1 tokens, the answer at the end, its source at its depth, in any tokeniser."""

from __future__ import annotations

import itertools
import string
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

from kerple_eval.data.sources.kinds import SyntheticSource
from kerple_eval.data.synthetic import needle, passkey
from kerple_eval.data.synthetic.associative_recall import AssociativeRecall
from kerple_eval.data.synthetic.base import SyntheticDocument, depth_grid, draw
from kerple_eval.data.synthetic.catalogue import GENERATORS, make_generator
from kerple_eval.data.synthetic.copying import Copy
from kerple_eval.data.task import TASKS, read_task
from kerple_eval.data.tokenizer import BYTE_TOKENIZER, JsonTokenizer, ModelTokens
from kerple_eval.support.registry import Entry, load
from kerple_eval.types import UserError

CORPUS = [*needle.FILLER, *passkey.FILLER, passkey.TELLS, "The secret number is 12345. Keep 67890 in mind."]
BYTES = ModelTokens("bytes", BYTE_TOKENIZER, 256)
NO_ROOM = "too short; use lengths of at least"


def byte_level(digits: bool) -> Tokenizer:
    """GPT-2's cut into words, or Llama 3's, whose digits take no space in and stand by three at most."""
    fast = Tokenizer(models.BPE())
    if digits:
        words = pre_tokenizers.Split(
            pattern=Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"),
            behavior="isolated",
        )
        level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        fast.pre_tokenizer = pre_tokenizers.Sequence([words, level])
    else:
        fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    fast.train_from_iterator(CORPUS * 10, trainer)
    return fast


def metaspace() -> Tokenizer:
    """SentencePiece's: a mark in place of each space, and one before the text."""
    fast = Tokenizer(models.BPE())
    fast.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    letters = sorted({c for line in CORPUS for c in line} | {"▁", *string.ascii_letters, *string.digits})
    fast.train_from_iterator(CORPUS * 10, trainers.BpeTrainer(vocab_size=400, initial_alphabet=letters))
    return fast


def no_words() -> Tokenizer:
    """BPE over whole lines: tokens run across words, so that an answer has no tokens of its own."""
    fast = Tokenizer(models.BPE())
    letters = sorted({c for line in CORPUS for c in line} | {*string.ascii_letters, *string.digits})
    lines = [f"{passkey.TELLS} {n}" for n in range(10000, 99999, 7)]
    fast.train_from_iterator([*CORPUS, *lines], trainers.BpeTrainer(vocab_size=900, initial_alphabet=letters))
    return fast


@pytest.fixture(scope="module")
def readers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ModelTokens]:
    folder = tmp_path_factory.mktemp("tokenisers")
    found = {"bytes": BYTES, "bytes-bos": ModelTokens("bytes-bos", BYTE_TOKENIZER, 256, (1,))}
    makers: dict[str, Callable[[], Tokenizer]] = {
        "words": lambda: byte_level(False), "digits": lambda: byte_level(True),
        "metaspace": metaspace, "no-words": no_words,
    }  # fmt: skip
    for name, make in makers.items():
        path = folder / f"{name}.json"
        make().save(str(path))
        tokenizer = JsonTokenizer(path)
        found[name] = ModelTokens(name, tokenizer, tokenizer.vocab_size)
    return found


def spell(reader: ModelTokens, ids: np.ndarray) -> str:
    if reader.tokenizer is BYTE_TOKENIZER:
        return bytes(ids.astype(np.uint8)).decode()
    tokens = [reader.tokenizer._fast.id_to_token(int(i)) for i in ids]  # type: ignore[union-attr]
    return "".join(tokens).replace("Ġ", " ").replace("▁", " ")


def least_length(make: Callable[[int], SyntheticDocument]) -> int:
    for length in range(1, 2000):
        try:
            make(length)
        except UserError as error:
            assert NO_ROOM in str(error)
            named = int(str(error).split(" ")[-1])
            assert named > length
        else:
            return length
    raise AssertionError


@pytest.mark.parametrize("task", ["passkey", "passkey:digits=9", "needle"])
@pytest.mark.parametrize("name", ["bytes", "bytes-bos", "words", "digits", "metaspace"])
def test_prose(readers: dict[str, ModelTokens], name: str, task: str) -> None:
    reader, generator = readers[name], make_generator(task)[0]
    lead = len(reader.before)

    def make(length: int, depth: float = 0.5) -> SyntheticDocument:
        return generator.make(reader, length, depth, np.random.default_rng(7))

    shortest = least_length(make)
    for length, depth in itertools.product((shortest, shortest + 1, 700, 2048), (0.0, 0.25, 0.6, 1.0)):
        made = make(length, depth)
        assert len(made.ids) == length + 1
        if lead:
            assert made.ids[0] == 1
        body = made.ids[lead:]
        text, answer = spell(reader, body), spell(reader, made.ids[-made.answer :]).strip()
        assert text.endswith(answer)
        assert answer.isdigit() if "passkey" in task else answer in needle.THINGS
        tells = passkey.TELLS if "passkey" in task else "What one should bring from "
        assert text.count(tells) == 2
        first = text.index(tells)
        told = text[first : text.index(".", first)]
        assert told == text[text.rindex(tells) :]  # the question is the needle again
        # The tokens are those of the text but where filler was cut: the model could not tell them apart.
        assert made.byte_counts is not None
        assert int(made.byte_counts.sum()) == len(text) - (name == "metaspace")
        # Depth is exact to a token: filler tokens before the needle of all filler tokens.
        if name.startswith("bytes"):
            intro = text.index(".", text.index("end")) + 1 if "passkey" in task else text.index(".") + 1
            after = text.index("mind.", first) + 5 if "passkey" in task else first + len(told) + 1
            before, behind = first - 1 - intro, text.rindex(tells) - 1 - after
            assert before == round(depth * (before + behind))


def test_answers_are_the_tokens_of_the_text(readers: dict[str, ModelTokens]) -> None:
    """The ids of a document's end are those of its text tokenised whole."""
    for name, digits in (("words", 5), ("digits", 5), ("metaspace", 7)):
        reader = readers[name]
        made = passkey.Passkey(digits=digits).make(reader, 300, 0.5, np.random.default_rng(1))
        answer = spell(reader, made.ids[-made.answer :])
        whole = reader.tokenizer.encode(f"{passkey.TELLS} {answer.strip()}")  # type: ignore[union-attr]
        assert (whole.ids[-made.answer :] == made.ids[-made.answer :]).all()
        assert len(answer.strip()) == digits


def test_an_answer_without_tokens_of_its_own_is_refused(readers: dict[str, ModelTokens]) -> None:
    with pytest.raises(
        UserError, match=r"model no-words .*ambiguous; use copy or associative-recall"
    ) as caught:
        passkey.Passkey().make(readers["no-words"], 400, 0.5, np.random.default_rng(0))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("line", GENERATORS.values(), ids=lambda line: line.name)
def test_the_catalogue(line: Entry) -> None:
    """Each generator is a task of its name, makes what is asked for, and the same again."""
    task = read_task(Path(TASKS[line.name].target))
    assert isinstance(task.source, SyntheticSource)
    generator, name = make_generator(task.source.generator)
    assert isinstance(generator, load(line.target))
    assert name.partition(":")[0] == line.name
    for length in (512, 1000):
        one, two = (generator.make(BYTES, length, 0.3, np.random.default_rng(5)) for _ in range(2))
        assert len(one.ids) == length + 1
        assert one.ids.tolist() == two.ids.tolist()
        assert 1 <= one.answer < 32
        assert (one.byte_counts is None) is generator.of_ids
        other = generator.make(BYTES, length, 0.3, np.random.default_rng(6))
        assert other.ids.tolist() != one.ids.tolist()


def test_filler_is_drawn_anew_on_either_side() -> None:
    made = needle.Needle().make(BYTES, 4096, 0.5, np.random.default_rng(3))
    text = bytes(made.ids.astype(np.uint8)).decode()
    before, after = text.split("What one should bring from ")[:2]
    assert before[-600:] not in text[len(before) :]
    assert set(after.split(". ")[2:4]) <= {line.rstrip(".") for line in needle.FILLER}


@pytest.mark.parametrize("bos", [(), (0,), (0, 7)])
@pytest.mark.parametrize(("cue", "answer"), [(1, 1), (3, 2), (8, 8)])
def test_copy(cue: int, answer: int, bos: tuple[int, ...]) -> None:
    reader, lead, ids = ModelTokens("m", None, 600, bos), len(bos), range(300, 600)
    size = cue + answer
    for length, depth in itertools.product((2 * size + lead - 1, 40, 90), depth_grid(5)):
        rng = np.random.default_rng(length)
        made = Copy(cue=cue, answer=answer, ids="300-599").make(reader, length, depth, rng)
        assert (len(made.ids), made.answer, made.byte_counts) == (length + 1, answer, None)
        x = made.ids[lead:].tolist()
        assert set(x) <= set(ids)
        source, rest = x[:-size], x[-size:]
        at = round(depth * (len(source) - size))
        assert source[at : at + size] == rest
        shown = x[:-answer]
        again = [i for i in range(len(shown) - cue + 1) if shown[i : i + cue] == rest[:cue]]
        assert again == [at, len(source)]  # the cue stands there alone, so the answer is decided


@pytest.mark.parametrize("bos", [(), (0,), (0, 7)])
@pytest.mark.parametrize("pairs", [1, 2, 5])
def test_associative_recall(pairs: int, bos: tuple[int, ...]) -> None:
    reader, lead = ModelTokens("m", None, 64, bos), len(bos)
    generator = AssociativeRecall(pairs=pairs, ids="10-29")
    keys, values = set(range(10, 20)), set(range(20, 30))
    for length, depth in itertools.product((2 * pairs + 3 + lead, 24, 61), depth_grid(7)):
        for seed in range(5):
            made = generator.make(reader, length, depth, np.random.default_rng(seed))
            assert (len(made.ids), made.answer) == (length + 1, 1)
            *x, asked, value = made.ids[lead:].tolist()
            places = [i for i, token in enumerate(x) if token in keys]
            assert len({x[i] for i in places}) == len(places) == pairs
            assert set(x) <= keys | values
            assert x[round(depth * (len(x) - 2))] == asked
            assert x[x.index(asked) + 1] == value
            assert all(x[i + 1] in values for i in places)


def test_other_pairs_lie_anywhere() -> None:
    """Two pairs and 6 tokens, the asked one at 2: the other at 0 or 4; with 7, at 0, 4 or 5, as likely."""
    reader = ModelTokens("m", None, 64)
    found: dict[int, int] = {}
    for seed in range(3000):
        made = AssociativeRecall(pairs=2, ids="10-29").make(reader, 8, 0.4, np.random.default_rng(seed))
        *x, asked, _ = made.ids.tolist()
        assert x.index(asked) == 2
        (place,) = (i for i, token in enumerate(x) if token < 20 and token != asked)
        found[place] = found.get(place, 0) + 1
    assert sorted(found) == [0, 4, 5]
    assert all(900 < n < 1100 for n in found.values())


def test_a_document_depends_on_its_place_alone() -> None:
    seen = set()
    for place in itertools.product((0, 1), (8, 9), (0, 1), (0, 1)):
        numbers = tuple(draw("copy", *place).integers(2**30, size=4).tolist())
        assert numbers == tuple(draw("copy", *place).integers(2**30, size=4).tolist())
        seen.add(numbers)
    assert len(seen) == 16
    assert depth_grid(1) == [0.5]
    assert depth_grid(5) == [0.0, 0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize(
    ("text", "length", "message"),
    [
        ("passkey", 10, "passkey: length 10 is too short"),
        ("passkey:digits=0", 99, "digits=0 must be within 1..18"),
        ("copy", 30, "copy: length 30 is too short; use lengths of at least 31"),
        ("copy:cue=0", 99, "cue=0 must be at least 1"),
        ("copy:cue=1,ids=1-2", 99, "cue=1 of 2 ids occurs more than once in 91 tokens at length 99"),
        ("copy:ids=5", 99, "ids=5 must be all, or two ids"),
        ("copy:ids=9-5", 99, "ids=9-5 must be all"),
        ("copy:ids=0-" + "9" * 5000, 99, "must be all, or two ids"),
        ("copy:ids=9-256", 99, r"ids=9-256 exceed the vocabulary \(0..255\)"),
        ("copy:cues=4", 99, "unknown option of copy 'cues': did you mean 'cue'"),
        ("associative-recall", 18, "length 18 is too short; use lengths of at least 19"),
        ("associative-recall:pairs=4,ids=0-6", 99, "pairs=4, but 7 ids give 3 keys"),
        ("associative-recall:pairs=0", 99, "pairs=0 must be at least 1"),
        ("pass-key", 99, "unknown generator 'pass-key': did you mean 'passkey'"),
    ],
)
def test_refusals(text: str, length: int, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make_generator(text)[0].make(BYTES, length, 0.5, np.random.default_rng(0))


def test_a_long_document_takes_as_much_filler_as_it_needs(readers: dict[str, ModelTokens]) -> None:
    """Tokens of many characters: the filler grows until it reaches, at either end."""
    for depth in (0.0, 1.0):
        made = needle.Needle().make(readers["words"], 4000, depth, np.random.default_rng(0))
        assert len(made.ids) == 4001
