"""When to try again: pure functions of the attempt and the error."""

from __future__ import annotations

import random
from typing import NamedTuple

from messaging.conf import RetrySettings
from messaging.exceptions import LONGEST_WAIT, PayloadError, Reject, Retry
from messaging.handlers import Backoff

PERMANENT = (Reject, PayloadError)


class Decision(NamedTuple):
    """What follows from a failed attempt.

    Attributes:
        retry_after: seconds until the next attempt; None to give up.
        reason: why it is given up, for operators; "" when it is retried.
    """

    retry_after: float | None
    reason: str = ""


def decide(
    attempt: int, error: BaseException, *, max_attempts: int, backoff: Backoff | None, policy: RetrySettings
) -> Decision:
    """Decide what follows from a failed attempt.

    Args:
        attempt: number of the attempt that failed, from 1.
        error: what it raised.
        max_attempts: started attempts after which to give up.
        backoff: the handler's own: seconds, or a callable of the attempt; None for the policy's.
        policy: the alias's `RETRY`.
    """
    if isinstance(error, PERMANENT):
        return Decision(None, "cannot succeed by trying again")
    if attempt >= max_attempts:
        return Decision(None, f"gave up after {attempt} attempt{'' if attempt == 1 else 's'}")
    if isinstance(error, Retry) and error.after is not None:  # not before that
        return Decision(min(error.after * (1 + policy.jitter * random.random()), LONGEST_WAIT))
    return Decision(pause(attempt, backoff, policy))


def pause(attempt: int, backoff: Backoff | None, policy: RetrySettings) -> float:
    """Seconds to wait after a failed attempt, give or take the policy's jitter: what failed together is spread out."""
    return min(interval(attempt, backoff, policy) * (1 + policy.jitter * (2 * random.random() - 1)), LONGEST_WAIT)


def interval(attempt: int, backoff: Backoff | None, policy: RetrySettings) -> float:
    """Seconds to wait after a failed attempt, without jitter.

    A backoff that raises or returns nonsense falls back to the policy.
    """
    if backoff is not None:
        try:
            seconds = float(backoff(attempt) if callable(backoff) else backoff)
        except Exception:  # noqa: BLE001  it is the user's own code
            seconds = -1.0
        if 0 <= seconds <= LONGEST_WAIT:
            return seconds
    # The exponent is bounded: a float overflows at about 3 to the power of 646.
    return min(policy.initial * policy.multiplier ** min(attempt - 1, 64), policy.maximum)
