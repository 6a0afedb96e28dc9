"""Captions of other objects of the same image, for a loss that must tell objects of one image apart."""

from collections import defaultdict

import numpy as np

from .sampler import Draw
from .samples import Samples


class Negatives:
    """Draws them, as a function of seed, epoch and reference alone."""

    def __init__(self, samples: Samples, *, seed: int) -> None:
        self._samples = samples
        self._seed = seed
        self._of_image: defaultdict[str, list[int]] = defaultdict(list)
        for reference, key in enumerate(samples.keys):
            self._of_image[key].append(reference)

    def of(self, reference: int, count: int, *, epoch: int) -> list[Draw]:
        """`count` draws with replacement from the image's other references, from all others where it has none.

        Sentences are uniform over those that have words.
        """
        rng = np.random.Generator(np.random.Philox(np.random.SeedSequence([self._seed, epoch, reference, 1])))
        keys, usable = self._samples.keys, self._samples.usable
        others = [other for other in self._of_image[keys[reference]] if other != reference]
        if others:
            chosen = [others[place] for place in rng.integers(len(others), size=count)]
        else:
            chosen = [int(place) + int(place >= reference) for place in rng.integers(len(keys) - 1, size=count)]
        return [(other, usable[other][rng.integers(len(usable[other]))]) for other in chosen]
