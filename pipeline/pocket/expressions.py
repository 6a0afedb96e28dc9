"""Referring expressions of the pocket world, as people would type them.

A meaning is proposed, the way a speaker of the flavour would think of it; it is judged against every thing of the
scene (`meaning`); only if it singles out the target is it put into words, with synonyms, filler and a few typos.

| flavour | as in | speaks of |
|---|---|---|
| `refcoco` | RefCOCO | appearance and places: "left red star", "second ring from right" |
| `refcoco+` | RefCOCO+ | appearance only: "bigger striped ring" |
| `refcocog` | RefCOCOg | relations, at length: "the star that is to the left of a large green ring" |
"""

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

import numpy as np

from ...shards.errors import InputError
from .meaning import Meaning, Order, Region, Relation, singles_out
from .painting import pick
from .scenes import Scene, Thing

Flavour = Literal["refcoco", "refcoco+", "refcocog"]
SENTENCES = 3
"""Sentences of one reference."""
TYPO_RATE = 0.035
"""Share of the words of four letters or more that are misspelt: 2 to 3 % of all words."""

SYNONYMS: dict[str, tuple[str, ...]] = {
    # What most people say comes first. A word stands under one meaning only.
    "circle": ("circle", "ball", "disc"),
    "square": ("square", "box", "block"),
    "triangle": ("triangle", "pyramid", "wedge"),
    "star": ("star", "starfish"),
    "ring": ("ring", "donut", "hoop"),
    "cross": ("cross", "plus"),
    "heart": ("heart", "valentine"),
    "crescent": ("crescent", "moon"),
    "red": ("red", "crimson", "scarlet"),
    "orange": ("orange", "tangerine"),
    "yellow": ("yellow", "golden", "lemon"),
    "green": ("green", "emerald", "lime"),
    "cyan": ("cyan", "turquoise", "teal", "aqua"),
    "blue": ("blue", "cobalt", "navy"),
    "purple": ("purple", "violet"),
    "pink": ("pink", "rose"),
    "plain": ("plain", "solid"),
    "striped": ("striped", "stripy", "lined"),
    "dotted": ("dotted", "spotted"),
    "checked": ("checked", "checkered", "chequered"),
    "small": ("small", "little", "tiny"),
    "medium": ("medium", "midsize"),
    "large": ("big", "large", "huge"),
}
BEARING = {"striped": ("stripes", "lines"), "dotted": ("dots", "spots"), "checked": ("checks",)}
"""What a thing of a texture is "with"."""
ANYTHING = ("one", "thing", "object")
ORDER_WORDS: dict[Order, tuple[str, ...]] = {
    "left": ("left", "leftmost"),
    "right": ("right", "rightmost"),
    "top": ("top", "highest", "upper"),
    "bottom": ("bottom", "lowest", "lower"),
    "big": ("biggest", "largest", "bigger"),
    "small": ("smallest", "smaller", "tiniest"),
}
ORDER_ENDS: dict[Order, tuple[str, ...]] = {
    "left": ("furthest to the left", "the leftmost"),
    "right": ("furthest to the right", "the rightmost"),
    "top": ("the highest", "closest to the top"),
    "bottom": ("the lowest", "closest to the bottom"),
    "big": ("the biggest", "larger than the rest"),
    "small": ("the smallest", "smaller than the rest"),
}
"""The same at the end of a long sentence, after "that is"."""
RANK_WORDS = {2: ("second", "2nd"), 3: ("third", "3rd")}
REGION_WORDS: dict[Region, tuple[str, ...]] = {
    "left": ("on the left", "on left", "at left"),
    "right": ("on the right", "on right", "at right"),
    "top": ("at the top", "on top", "up top"),
    "bottom": ("at the bottom", "on bottom", "down low"),
    "middle": ("in the middle", "in middle", "in center"),
    "top left": ("in top left", "top left corner", "upper left"),
    "top right": ("in top right", "top right corner", "upper right"),
    "bottom left": ("in bottom left", "bottom left corner", "lower left"),
    "bottom right": ("in bottom right", "bottom right corner", "lower right"),
}
RELATION_WORDS: dict[Relation, tuple[str, ...]] = {
    "left of": ("to the left of", "left of"),
    "right of": ("to the right of", "right of"),
    "above": ("above", "higher up than"),
    "below": ("below", "underneath"),
    "next to": ("next to", "beside", "close to"),
    "in front of": ("in front of", "partly covering"),
    "behind": ("behind", "partly hidden by"),
}
GROUND_WORDS = {
    "sand": "on sand",
    "stone": "on stone",
    "cloth": "on striped cloth",
    "tiles": "on tiles",
    "sky": "in the sky",
    "wood": "on wood",
}
_SMALL_WORDS = ("the", "that", "which", "is", "a", "an", "and", "with", "from")
_PLACES: tuple[Order, ...] = ("left", "right", "top", "bottom")

VOCABULARY = frozenset(
    word
    for table in (SYNONYMS, BEARING, ORDER_WORDS, ORDER_ENDS, RANK_WORDS, REGION_WORDS, RELATION_WORDS)
    for phrases in table.values()
    for phrase in phrases
    for word in phrase.split()
).union(_SMALL_WORDS, ANYTHING, *(phrase.split() for phrase in GROUND_WORDS.values()))
"""Every word of the language, rightly spelt."""


def describe(
    scene: Scene, target: int, flavour: Flavour, rng: np.random.Generator, *, typo_rate: float = TYPO_RATE
) -> list[str]:
    """Three different sentences, each true of the target and of no other thing of the scene; [] if there are none.

    Sentences are lower-case. A misspelt word is never another word of the language; `typo_rate` as `TYPO_RATE`.

    Raises:
        InputError: the flavour is unknown.
    """
    if flavour not in _SPEAKERS:
        raise InputError(f"There is no flavour '{flavour}' of expressions; take one of {', '.join(_SPEAKERS)}.")
    propose, say = _SPEAKERS[flavour]
    sentences: list[str] = []
    for _ in range(120):
        meaning = propose(scene, target, rng)
        if not singles_out(scene, target, meaning):
            continue
        sentence = say(meaning, rng)
        if sentence not in sentences:
            sentences.append(sentence)
        if len(sentences) == SENTENCES:
            return [_mistype(sentence, typo_rate, rng) for sentence in sentences]
    return []


def captions(scene: Scene, rng: np.random.Generator) -> str:
    """A caption of the whole photo that names two or three of its things: "a red star and a big blue ring on sand"."""
    phrases = []
    for place in rng.permutation(len(scene.things))[: int(rng.integers(2, 4))]:
        looks = _looks(scene.things[place], rng, shape=1.0, colour=1.0, texture=0.7, size=0.5)
        phrases.append(_with_article(_noun_phrase(looks, rng)))
    listing = ", ".join(phrases[:-1]) + " and " + phrases[-1]
    return f"{listing} {GROUND_WORDS[scene.ground]}" if rng.random() < 0.6 else listing


# ---------------------------------------------------------------- what a speaker thinks of


def _looks(
    thing: Thing, rng: np.random.Generator, *, shape: float, colour: float, texture: float, size: float
) -> Meaning:
    """Some of what the thing looks like, each with its own probability; few people say "plain" or "medium"."""
    texture *= 0.4 if thing.texture == "plain" else 1
    size *= 0.3 if thing.size == "medium" else 1
    return Meaning(
        shape=thing.shape if rng.random() < shape else None,
        colour=thing.colour if rng.random() < colour else None,
        texture=thing.texture if rng.random() < texture else None,
        size=thing.size if rng.random() < size else None,
    )


def _by_looks(scene: Scene, target: int, rng: np.random.Generator) -> Meaning:
    if rng.random() < 0.8:
        return _looks(scene.things[target], rng, shape=0.88, colour=0.6, texture=0.32, size=0.2)
    looks = _looks(scene.things[target], rng, shape=0.88, colour=0.6, texture=0.32, size=0.0)
    return replace(looks, order="big" if rng.random() < 0.55 else "small")


def _by_place(scene: Scene, target: int, rng: np.random.Generator) -> Meaning:
    way = rng.random()
    if way < 0.25:
        return _by_looks(scene, target, rng)
    looks = _looks(scene.things[target], rng, shape=0.75, colour=0.4, texture=0.15, size=0.08)
    if way < 0.4:
        return replace(looks, order=pick(rng, _PLACES[:2]), rank=int(rng.integers(2, 4)))
    if way < 0.75:
        return replace(looks, order=pick(rng, _PLACES))
    return replace(looks, region=pick(rng, tuple(REGION_WORDS)))


def _by_relation(scene: Scene, target: int, rng: np.random.Generator) -> Meaning:
    if rng.random() < 0.1:
        looks = _looks(scene.things[target], rng, shape=1.0, colour=0.55, texture=0.35, size=0.0)
        return replace(looks, order=pick(rng, tuple(ORDER_ENDS)))
    looks = _looks(scene.things[target], rng, shape=1.0, colour=0.55, texture=0.35, size=0.25)
    reference = int(rng.integers(len(scene.things) - 1))
    reference += reference >= target
    other = _looks(scene.things[reference], rng, shape=1.0, colour=0.6, texture=0.3, size=0.25)
    return replace(looks, relation=pick(rng, tuple(RELATION_WORDS)), other=other)


# ---------------------------------------------------------------- words


def _word(rng: np.random.Generator, meaning: str) -> str:
    """The word most people use, or in some cases another one for the same."""
    words = SYNONYMS[meaning]
    return words[0] if rng.random() < 0.7 else pick(rng, words)


def _with_article(phrase: str) -> str:
    return f"{'an' if phrase[0] in 'aeiou' else 'a'} {phrase}"


def _noun_phrase(meaning: Meaning, rng: np.random.Generator, *first: str) -> str:
    """Looks and noun in the order people use, after the words `first`."""
    looks = [_word(rng, meaning.colour)] if meaning.colour else []
    bearing: list[str] = []
    if meaning.texture in BEARING and rng.random() < 0.25:
        bearing = ["with", pick(rng, BEARING[meaning.texture])]
    elif meaning.texture:
        # "striped blue" and "blue striped" are both common.
        looks.insert(int(rng.integers(len(looks) + 1)), _word(rng, meaning.texture))
    size = [_word(rng, meaning.size)] if meaning.size else []
    noun = _word(rng, meaning.shape) if meaning.shape else pick(rng, ANYTHING)
    return " ".join([*first, *size, *looks, noun, *bearing])


def _in_haste(meaning: Meaning, rng: np.random.Generator) -> str:
    """A phrase of a few words, such as people type in a game against the clock."""
    says_looks = meaning.shape or meaning.colour or meaning.texture or meaning.size
    if meaning.order and meaning.rank > 1:
        phrase = f"{pick(rng, RANK_WORDS[meaning.rank])} {_noun_phrase(meaning, rng)} from {meaning.order}"
    elif meaning.order:
        phrase = _noun_phrase(meaning, rng, pick(rng, ORDER_WORDS[meaning.order]))
    elif meaning.region and not says_looks and rng.random() < 0.5:
        return pick(rng, REGION_WORDS[meaning.region])
    elif meaning.region:
        phrase = f"{_noun_phrase(meaning, rng)} {pick(rng, REGION_WORDS[meaning.region])}"
    else:
        phrase = _noun_phrase(meaning, rng)
    filler = rng.random()
    return f"the {phrase}" if filler < 0.15 else f"that {phrase}" if filler < 0.18 else phrase


def _at_length(meaning: Meaning, rng: np.random.Generator) -> str:
    """A noun phrase with a clause, such as people write without haste."""
    noun = _noun_phrase(meaning, rng)
    link = pick(rng, ("that is", "which is"))
    if meaning.order:
        return f"the {noun} {link} {pick(rng, ORDER_ENDS[meaning.order])}"
    subject = f"the {noun}" if rng.random() < 0.5 else _with_article(noun)
    if meaning.relation is None or meaning.other is None:
        return subject
    clause = f"{pick(rng, RELATION_WORDS[meaning.relation])} {_with_article(_noun_phrase(meaning.other, rng))}"
    return f"{subject} {link} {clause}" if rng.random() < 0.65 else f"{subject} {clause}"


_SPEAKERS: dict[
    Flavour,
    tuple[Callable[[Scene, int, np.random.Generator], Meaning], Callable[[Meaning, np.random.Generator], str]],
] = {
    "refcoco": (_by_place, _in_haste),
    "refcoco+": (_by_looks, _in_haste),
    "refcocog": (_by_relation, _at_length),
}


def _mistype(sentence: str, rate: float, rng: np.random.Generator) -> str:
    """Some words of four letters or more with a slip of the fingers."""
    return " ".join(_slip(word, rng) if len(word) >= 4 and rng.random() < rate else word for word in sentence.split())


def _slip(word: str, rng: np.random.Generator) -> str:
    """Two letters swapped, one dropped or one doubled; the word itself where that makes another word."""
    at = int(rng.integers(1, len(word) - 1))
    before, letter, after = word[:at], word[at], word[at + 1 :]
    slipped = pick(rng, (before + after[0] + letter + after[1:], before + after, before + letter + letter + after))
    return word if slipped in VOCABULARY else slipped
