"""Outlines of the pocket world's shapes, and how much of each pixel a shape covers."""

import functools
import math

import cv2
import numpy as np

_SUPERSAMPLE = 3
_FRACTION_BITS = 4
"""Of the fixed-point coordinates that OpenCV fills polygons with."""


@functools.cache
def outline(shape: str) -> tuple[np.ndarray, ...]:
    """Contours float [n, 2] of a shape of diameter about 1 around the origin; a second contour is a hole."""
    turn = np.linspace(0, 2 * math.pi, 48, endpoint=False)
    match shape:
        case "circle":
            return (_polar(0.5, turn),)
        case "ring":
            return _polar(0.53, turn), _polar(0.28, turn)
        case "square":
            return (_polar(0.43 * math.sqrt(2), np.arange(1, 8, 2) * math.pi / 4),)
        case "triangle":
            return (_polar(0.6, (np.arange(3) * 4 - 3) * math.pi / 6),)
        case "star":
            return (_polar(np.tile([0.6, 0.26], 5), (np.arange(10) * 2 - 5) * math.pi / 10),)
        case "cross":
            arm, reach = 0.17, 0.52
            corner = np.array([[arm, reach], [arm, arm], [reach, arm]])
            quarter = np.array([[0.0, -1.0], [1.0, 0.0]])
            return (np.concatenate([corner @ np.linalg.matrix_power(quarter, k) for k in range(4)]),)
        case "heart":
            x = 16 * np.sin(turn) ** 3
            y = 13 * np.cos(turn) - 5 * np.cos(2 * turn) - 2 * np.cos(3 * turn) - np.cos(4 * turn)
            return (np.stack([x, -y - 2.5], axis=1) / 32,)
        case "crescent":
            return (_crescent(outer_radius=0.54, inner_radius=0.45, shift=0.27) + np.array([0.1, 0.0]),)
        case _:
            raise ValueError(f"no outline of '{shape}'")


def cover(shape: str, diameter_px: float, angle: float, offset_px: np.ndarray) -> np.ndarray:
    """Share of each pixel that a shape covers: float32 [p, p], its centre within `offset_px` (x, y) of the patch's."""
    side = 2 * math.ceil(0.62 * diameter_px) + 4
    fine = np.zeros((side * _SUPERSAMPLE, side * _SUPERSAMPLE), np.uint8)
    cos, sin = math.cos(angle), math.sin(angle)
    turn = np.array([[cos, sin], [-sin, cos]])
    contours = []
    for contour in outline(shape):
        points = (contour @ turn * diameter_px + offset_px + side / 2) * _SUPERSAMPLE - 0.5
        contours.append(np.round(points * 2**_FRACTION_BITS).astype(np.int32))
    cv2.fillPoly(fine, contours, 255, cv2.LINE_8, _FRACTION_BITS)
    coarse = cv2.resize(fine, (side, side), interpolation=cv2.INTER_AREA)
    return coarse.astype(np.float32) / 255


def _polar(radius: float | np.ndarray, angles: np.ndarray) -> np.ndarray:
    """float [n, 2]: points at a radius, y pointing down."""
    return np.stack([radius * np.cos(angles), radius * np.sin(angles)], axis=1)


def _crescent(*, outer_radius: float, inner_radius: float, shift: float) -> np.ndarray:
    """A disc less a smaller disc that is shifted to the right."""
    meet = (outer_radius**2 - inner_radius**2 + shift**2) / (2 * shift)  # x at which the two circles cross
    outer_start, inner_start = math.acos(meet / outer_radius), math.acos((meet - shift) / inner_radius)
    outer = _polar(outer_radius, np.linspace(outer_start, 2 * math.pi - outer_start, 40))
    inner = _polar(inner_radius, np.linspace(2 * math.pi - inner_start, inner_start, 30))
    return np.concatenate([outer, inner + np.array([shift, 0.0])])
