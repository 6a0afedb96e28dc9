"""What a phrase of the pocket world says, and which things of a scene it is true of.

Judgement has three values, because "left of" and "bigger" have no sharp edge: 1 surely, 0 surely not, 0.5 a matter of
opinion. They combine as in Kleene's logic: "and" is the least, "some" the greatest. A phrase singles a thing out only
if it is surely true of that thing and surely false of every other one.
"""

import math
from dataclasses import dataclass
from typing import Literal

from .scenes import Scene

Order = Literal["left", "right", "top", "bottom", "big", "small"]
Region = Literal["left", "right", "top", "bottom", "middle", "top left", "top right", "bottom left", "bottom right"]
Relation = Literal["left of", "right of", "above", "below", "next to", "in front of", "behind"]


@dataclass(frozen=True, kw_only=True)
class Meaning:
    """What is said of a thing; None where nothing is. All that is said must hold together."""

    shape: str | None = None
    colour: str | None = None
    texture: str | None = None
    size: str | None = None
    region: Region | None = None
    """Where in the photo it stands."""
    relation: Relation | None = None
    other: "Meaning | None" = None
    """With `relation`: the thing related to; it has to exist, not to be unique."""
    order: Order | None = None
    """First in this respect of all the things that the rest holds for; said of two or more only."""
    rank: int = 1
    """With `order`: not the first but the how-manieth."""


def singles_out(scene: Scene, target: int, meaning: Meaning) -> bool:
    """Whether a meaning is surely true of the target and surely false of every other thing."""
    if truth(scene, target, meaning) != 1:
        return False
    return all(truth(scene, thing, meaning) == 0 for thing in range(len(scene.things)) if thing != target)


def truth(scene: Scene, thing: int, meaning: Meaning) -> float:
    """Whether a meaning holds for one thing of the scene: 1 surely, 0 surely not, 0.5 a matter of opinion."""
    held = _unordered(scene, thing, meaning)
    if meaning.order is None or held == 0:
        return held
    rivals = {u: _unordered(scene, u, meaning) for u in range(len(scene.things)) if u != thing}
    if sum(rival > 0 for rival in rivals.values()) < meaning.rank:
        return 0.0  # nobody says "left one" of the only one, nor "second from left" of the last
    ahead = [min(rival, _precedes(scene, u, thing, meaning.order)) for u, rival in rivals.items()]
    surely, possibly = sum(a == 1 for a in ahead), sum(a > 0 for a in ahead)
    if surely == possibly == meaning.rank - 1:
        return held
    return 0.5 if surely <= meaning.rank - 1 <= possibly else 0.0


def _unordered(scene: Scene, thing: int, meaning: Meaning) -> float:
    """Truth of all that is said but the order."""
    it = scene.things[thing]
    for said, real in (
        (meaning.shape, it.shape),
        (meaning.colour, it.colour),
        (meaning.texture, it.texture),
        (meaning.size, it.size),
    ):
        if said is not None and said != real:
            return 0.0
    held = 1.0 if meaning.region is None else _stands_in(scene, thing, meaning.region)
    if held and meaning.relation is not None and meaning.other is not None:
        relation, other = meaning.relation, meaning.other
        references = (u for u in range(len(scene.things)) if u != thing)
        held = min(held, max(min(truth(scene, u, other), _related(scene, thing, u, relation)) for u in references))
    return held


def _judge(value: float, *, no: float, yes: float) -> float:
    """0 up to `no`, 1 from `yes` on, an opinion between."""
    return 0.0 if value <= no else 1.0 if value >= yes else 0.5


def _position(scene: Scene, thing: int) -> tuple[float, float]:
    """A thing's centre as shares of the photo's width and height."""
    height, width = scene.image.shape[:2]
    x, y = scene.things[thing].centre
    return x / width, y / height


def _precedes(scene: Scene, first: int, second: int, order: Order) -> float:
    """Whether one thing comes before another in an order, by a margin that anyone would see."""
    if order in ("big", "small"):
        a, b = scene.things[first], scene.things[second]
        if order == "small":
            a, b = b, a
        # Both the outline as a whole and what is seen of it must be larger.
        diameters, areas = a.diameter / b.diameter, a.area / b.area
        return min(_judge(diameters, no=1 / 1.25, yes=1.25), _judge(areas, no=1 / 1.2, yes=1.2))
    (ax, ay), (bx, by) = _position(scene, first), _position(scene, second)
    lead = {"left": bx - ax, "right": ax - bx, "top": by - ay, "bottom": ay - by}[order]
    return _judge(lead, no=-0.07, yes=0.07)


def _stands_in(scene: Scene, thing: int, region: Region) -> float:
    x, y = _position(scene, thing)
    if region == "middle":
        return min(_judge(-abs(share - 0.5), no=-0.26, yes=-0.14) for share in (x, y))
    sides = {"left": 1 - x, "right": x, "top": 1 - y, "bottom": y}
    return min(_judge(sides[side], no=0.48, yes=0.62) for side in region.split())


def _related(scene: Scene, subject: int, reference: int, relation: Relation) -> float:
    a, b = scene.things[subject], scene.things[reference]
    if relation == "in front of":
        return _judge(a.hides.get(reference, 0.0), no=0.0, yes=0.08)
    if relation == "behind":
        return _judge(b.hides.get(subject, 0.0), no=0.0, yes=0.08)
    (ax, ay), (bx, by) = a.centre, b.centre
    across, down = (ax - bx) / scene.frame_unit_px, (ay - by) / scene.frame_unit_px
    if relation == "next to":
        # Things that touch are half the sum of their diameters apart.
        return _judge(-math.hypot(across, down) / (a.diameter + b.diameter), no=-1.0, yes=-0.62)
    along, aside = {
        "left of": (-across, down),
        "right of": (across, down),
        "above": (-down, across),
        "below": (down, across),
    }[relation]
    if along <= 6:
        return 0.0
    # Straight beside it, and not merely somewhere on that half of the photo.
    return min(_judge(along, no=6, yes=16), _judge(along / max(abs(aside), 1.0), no=0.6, yes=1.3))
