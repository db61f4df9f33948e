"""How long to wait before the next try."""

from __future__ import annotations

import dataclasses
import random


@dataclasses.dataclass(frozen=True)
class Backoff:
    """Bounded exponential back-off with full jitter.

    The n-th wait in a row is drawn evenly from 0 to `first_s · factorⁿ`, and at most `most_s`: clients whose server
    restarts do not all come back at the same moment. After `give_up_after_s` without an answer of any server the call
    fails with `Unavailable`.
    """

    first_s: float = 0.1
    factor: float = 2.0
    most_s: float = 5.0
    give_up_after_s: float = 60.0

    def __post_init__(self) -> None:
        if not (self.first_s > 0 and self.factor >= 1 and self.most_s > 0 and self.give_up_after_s >= 0):
            raise ValueError(f"first_s and most_s are above 0, factor at least 1, give_up_after_s not negative: {self}")

    def wait_s(self, tries: int) -> float:
        """The wait after `tries` failures in a row, from 1."""
        # The exponent is bounded, so that it cannot overflow however long a server is away.
        bound = min(self.most_s, self.first_s * self.factor ** min(tries - 1, 60))
        return random.uniform(0, bound)
