"""A sentence of the pocket world is true of exactly one thing, says what its flavour may, and reads as people type."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import pytest
from weakmcn.pipeline.pocket.expressions import (
    ANYTHING,
    BEARING,
    GROUND_WORDS,
    ORDER_ENDS,
    ORDER_WORDS,
    RANK_WORDS,
    REGION_WORDS,
    RELATION_WORDS,
    SYNONYMS,
    VOCABULARY,
    Flavour,
    captions,
    describe,
)
from weakmcn.pipeline.pocket.meaning import Meaning, singles_out, truth
from weakmcn.pipeline.pocket.scenes import COLOURS, SHAPES, SIZES, TEXTURES, Scene, Thing, draw_scene, scene_rng
from weakmcn.shards.errors import InputError

FLAVOURS: tuple[Flavour, ...] = ("refcoco", "refcoco+", "refcocog")
PLACES = {"left", "right", "top", "bottom", "middle", "center", "corner", "side", "upper", "lower", "up", "down", "low"}
PLACES |= {"leftmost", "rightmost", "highest", "lowest", "first", "second", "third", "from", "at", "in", "on", "near"}
PLACES |= {"next", "close", "beside", "above", "below", "over", "under", "underneath", "behind", "front", "hidden"}


@pytest.fixture(scope="module")
def scenes() -> list[Scene]:
    return [draw_scene(scene_rng("world", 11, index)) for index in range(100)]


# ---------------------------------------------------------------- meaning


def thing(x: float, y: float, shape: str = "star", colour: str = "red", diameter: float = 30) -> Thing:
    """A thing of which all that matters is its centre; the photo is 192 x 192, so pixels are frame units."""
    mask = np.zeros((192, 192), bool)
    mask[: round(diameter), : round(diameter)] = True
    half = diameter / 2
    return Thing(
        shape=shape,
        colour=colour,
        texture="plain",
        size="small",
        diameter=diameter,
        box=(x - half, y - half, diameter, diameter),
        mask=mask,
        area=int(mask.sum()),
        hides={},
    )


def scene_of(*things: Thing) -> Scene:
    return Scene(image=np.zeros((192, 192, 3), np.uint8), things=things, ground="sand")


def judged(scene: Scene, meaning: Meaning) -> list[float]:
    return [truth(scene, place, meaning) for place in range(len(scene.things))]


def test_the_left_star_is_the_leftmost_of_the_stars_not_of_all_things() -> None:
    scene = scene_of(thing(20, 90, "ring"), thing(80, 90), thing(150, 90))
    assert judged(scene, Meaning(shape="star", order="left")) == [0, 1, 0]
    assert judged(scene, Meaning(order="left")) == [1, 0, 0]


def test_an_order_too_close_to_call_is_an_opinion() -> None:
    scene = scene_of(thing(80, 20), thing(88, 150), thing(150, 90))
    assert judged(scene, Meaning(order="left")) == [0.5, 0.5, 0]
    assert not any(singles_out(scene, place, Meaning(order="left")) for place in range(3))
    assert judged(scene, Meaning(order="right")) == [0, 0, 1]


def test_nobody_says_left_of_the_only_one_nor_second_from_left_of_the_last() -> None:
    scene = scene_of(thing(20, 90, "ring"), thing(80, 90), thing(150, 90))
    assert judged(scene, Meaning(shape="ring", order="left")) == [0, 0, 0]
    assert judged(scene, Meaning(shape="star", order="left", rank=2)) == [0, 0, 0]
    assert judged(scene, Meaning(order="left", rank=2)) == [0, 1, 0]


def test_bigger_needs_a_clear_margin() -> None:
    clearly = scene_of(thing(40, 40, diameter=60), thing(150, 150, diameter=40))
    assert judged(clearly, Meaning(order="big")) == [1, 0]
    hardly = scene_of(thing(40, 40, diameter=42), thing(150, 150, diameter=40))
    assert judged(hardly, Meaning(order="big")) == [0.5, 0.5]


def test_a_relation_holds_for_any_thing_that_fits_its_other_side() -> None:
    scene = scene_of(thing(30, 90), thing(90, 92, "ring"), thing(150, 90))
    left_of_ring = Meaning(shape="star", relation="left of", other=Meaning(shape="ring"))
    assert judged(scene, left_of_ring) == [1, 0, 0]
    left_of_blue_ring = Meaning(shape="star", relation="left of", other=Meaning(shape="ring", colour="blue"))
    assert judged(scene, left_of_blue_ring) == [0, 0, 0]


def test_what_lies_over_another_thing_is_in_front_of_it() -> None:
    below, above = thing(60, 60, "ring"), thing(75, 60)
    above = Thing(**{**vars(above), "hides": {0: 0.2}})
    scene = scene_of(below, above)
    assert judged(scene, Meaning(relation="in front of", other=Meaning(shape="ring"))) == [0, 1]
    assert judged(scene, Meaning(relation="behind", other=Meaning())) == [1, 0]


# ---------------------------------------------------------------- expressions, read back by other means


@dataclass
class Reading:
    """A sentence taken apart by a reader who knows the word lists and nothing of how it was made."""

    looks: dict[str, str] = field(default_factory=dict)
    order: str | None = None
    rank: int = 1
    region: str | None = None
    relation: str | None = None
    other: "Reading | None" = None


ATTRIBUTES = {
    word: name
    for name, words in zip(("shape", "colour", "texture", "size"), (SHAPES, COLOURS, TEXTURES, SIZES), strict=True)
    for word in words
}
LOOKS = {word: (ATTRIBUTES[meaning], meaning) for meaning, words in SYNONYMS.items() for word in words}
BORNE = {f"with {word}": texture for texture, words in BEARING.items() for word in words}


def cut(text: str, table: dict, where: Callable[[str, str], bool]) -> tuple[str, str | int | None]:
    """`text` without the longest phrase of the table that is there, and what that phrase means."""
    phrases = [(phrase, meaning) for meaning, words in table.items() for phrase in words if where(text, phrase)]
    if not phrases:
        return text, None
    phrase, meaning = max(phrases, key=lambda pair: len(pair[0]))
    return f" {text} ".replace(f" {phrase} ", " ", 1).strip(), meaning


def starts(text: str, phrase: str) -> bool:
    return f"{text} ".startswith(f"{phrase} ")


def ends(text: str, phrase: str) -> bool:
    return f" {text}".endswith(f" {phrase}")


def read(sentence: str) -> Reading:
    reading = Reading()
    for relation, phrases in RELATION_WORDS.items():
        for phrase in sorted(phrases, key=len, reverse=True):
            if f" {phrase} " in sentence and reading.relation is None:
                sentence, _, rest = sentence.partition(f" {phrase} ")
                reading.relation, reading.other = relation, read(rest)
    for link in (" that is", " which is"):
        if link in sentence:
            sentence, _, rest = sentence.partition(link)
            if rest:
                reading.order = next(order for order, words in ORDER_ENDS.items() if rest.strip() in words)
    for article in ("the ", "that ", "an ", "a "):
        sentence = sentence.removeprefix(article)
    sentence, reading.region = cut(sentence, REGION_WORDS, ends)  # pyright: ignore[reportAttributeAccessIssue]
    sentence, rank = cut(sentence, RANK_WORDS, starts)
    if rank:
        sentence, _, reading.order = sentence.partition(" from ")
        reading.rank = int(rank)
    elif not reading.order:
        sentence, reading.order = cut(sentence, ORDER_WORDS, starts)  # pyright: ignore[reportAttributeAccessIssue]
    for phrase, texture in BORNE.items():
        if ends(sentence, phrase):
            sentence, reading.looks["texture"] = sentence.removesuffix(phrase), texture
    for word in sentence.split():
        if word not in ANYTHING:
            name, meaning = LOOKS[word]
            reading.looks[name] = meaning
    return reading


def fits(scene: Scene, place: int, reading: Reading) -> bool:
    """Whether all but the order holds, by plain geometry with sharp edges halfway between "surely" and "surely not"."""
    it = scene.things[place]
    if any(getattr(it, name) != meaning for name, meaning in reading.looks.items()):
        return False
    height, width = scene.image.shape[:2]
    x, y = it.centre
    inside = {
        "left": x < 0.45 * width,
        "right": x > 0.55 * width,
        "top": y < 0.45 * height,
        "bottom": y > 0.55 * height,
        "middle": abs(x / width - 0.5) < 0.2 and abs(y / height - 0.5) < 0.2,
    }
    if reading.region and not all(inside[word] for word in reading.region.split()):
        return False
    if reading.relation is None or reading.other is None:
        return True
    references = [u for u in range(len(scene.things)) if u != place and fits(scene, u, reading.other)]
    return any(relates(scene, place, u, reading.relation) for u in references)


def relates(scene: Scene, place: int, reference: int, relation: str) -> bool:
    a, b = scene.things[place], scene.things[reference]
    dx, dy = a.centre[0] - b.centre[0], a.centre[1] - b.centre[1]
    far = 11 * scene.frame_unit_px
    return {
        "left of": dx < -far and abs(dy) < abs(dx),
        "right of": dx > far and abs(dy) < abs(dx),
        "above": dy < -far and abs(dx) < abs(dy),
        "below": dy > far and abs(dx) < abs(dy),
        "next to": np.hypot(dx, dy) < 0.8 * (a.diameter + b.diameter) * scene.frame_unit_px,
        "in front of": a.hides.get(reference, 0) > 0.04,
        "behind": b.hides.get(place, 0) > 0.04,
    }[relation]


def meant(scene: Scene, sentence: str) -> set[int]:
    """The things a sentence is true of, found by reading it."""
    reading = read(sentence)
    fitting = [place for place in range(len(scene.things)) if fits(scene, place, reading)]
    if reading.order is None:
        return set(fitting)
    along = {
        "left": lambda it: it.centre[0],
        "right": lambda it: -it.centre[0],
        "top": lambda it: it.centre[1],
        "bottom": lambda it: -it.centre[1],
        "big": lambda it: -it.diameter,
        "small": lambda it: it.diameter,
    }[reading.order]
    ordered = sorted(fitting, key=lambda place: along(scene.things[place]))
    return set(ordered[reading.rank - 1 : reading.rank])


@pytest.mark.parametrize("flavour", FLAVOURS)
def test_a_sentence_read_back_is_true_of_its_target_and_of_nothing_else(flavour: Flavour, scenes: list[Scene]) -> None:
    rng = np.random.default_rng(0)
    told = 0
    for scene in scenes[:80]:
        for target in range(len(scene.things)):
            sentences = describe(scene, target, flavour, rng, typo_rate=0)
            told += len(sentences) == 3
            assert len(set(sentences)) == len(sentences) in (0, 3)
            for sentence in sentences:
                assert meant(scene, sentence) == {target}, sentence
    assert told > 0.9 * sum(len(scene.things) for scene in scenes[:80])


def test_a_thing_that_looks_like_another_has_no_sentence_without_places() -> None:
    twins = scene_of(thing(30, 30), thing(150, 150))
    rng = np.random.default_rng(0)
    assert describe(twins, 0, "refcoco+", rng) == []
    assert len(describe(twins, 0, "refcoco", rng)) == 3


def test_refcoco_plus_tells_no_place(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(1)
    words = {
        word
        for scene in scenes[:80]
        for sentence in describe(scene, 0, "refcoco+", rng, typo_rate=0)
        for word in sentence.split()
    }
    assert len(words) > 50
    assert not words & PLACES


def test_a_word_has_one_meaning() -> None:
    words = [word for words in SYNONYMS.values() for word in words]
    words += [word for table in (BEARING, ORDER_WORDS) for phrases in table.values() for word in phrases]
    assert len(words) == len(set(words))
    assert not set(words) & set(ANYTHING)


@pytest.mark.parametrize(
    ("flavour", "least", "most"), [("refcoco", 2.4, 3.6), ("refcoco+", 2.2, 3.4), ("refcocog", 7, 11)]
)
def test_sentences_are_as_long_as_people_make_them(
    flavour: Flavour, least: float, most: float, scenes: list[Scene]
) -> None:
    rng = np.random.default_rng(2)
    lengths = [len(text.split()) for scene in scenes[:60] for text in describe(scene, 0, flavour, rng)]
    assert least < np.mean(lengths) < most


def test_typos_are_few_and_make_no_other_word(scenes: list[Scene]) -> None:
    rng = np.random.default_rng(3)
    sentences = [text for scene in scenes for target in (0, 1) for text in describe(scene, target, "refcoco", rng)]
    words = " ".join(sentences).split()
    misspelt = [word for word in words if word not in VOCABULARY]
    assert 0.015 < len(misspelt) / len(words) < 0.04


def test_every_word_is_typed_in_lower_case() -> None:
    assert all(word == word.lower() and word.isalnum() for word in VOCABULARY)


def test_an_unknown_flavour_is_named(scenes: list[Scene]) -> None:
    with pytest.raises(InputError, match="refclef"):
        describe(scenes[0], 0, "refclef", np.random.default_rng(0))  # pyright: ignore[reportArgumentType]


def test_a_caption_names_things_that_are_there(scenes: list[Scene]) -> None:
    for number, scene in enumerate(scenes[:60]):
        caption = captions(scene, np.random.default_rng(number))
        for ground in GROUND_WORDS.values():
            caption = caption.removesuffix(f" {ground}")
        phrases = caption.replace(" and ", ", ").split(", ")
        assert 2 <= len(phrases) <= 3
        for phrase in phrases:
            assert meant(scene, phrase), phrase
