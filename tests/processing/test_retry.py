"""When to try again."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messaging.conf import RetrySettings
from messaging.exceptions import LONGEST_WAIT, PayloadError, Reject, Retry
from messaging.processing.retry import decide, pause

POLICY = RetrySettings(max_attempts=8, initial=5, multiplier=3, maximum=3600, jitter=0)


def after(attempt: int, error: BaseException, **options: Any) -> float | None:
    return decide(attempt, error, **{"max_attempts": 8, "backoff": None, "policy": POLICY, **options}).retry_after


def test_the_default_grows_up_to_the_maximum() -> None:
    assert [pause(attempt, None, POLICY) for attempt in range(1, 9)] == [5, 15, 45, 135, 405, 1215, 3600, 3600]


@given(attempt=st.integers(1, 10**6), jitter=st.floats(0, 1), multiplier=st.floats(1, 100))
def test_every_pause_is_a_number_of_seconds(attempt: int, jitter: float, multiplier: float) -> None:
    policy = RetrySettings(jitter=jitter, multiplier=multiplier)
    assert 0 <= pause(attempt, None, policy) <= policy.maximum * 2


@pytest.mark.parametrize("error", [Reject("no"), PayloadError("bad")])
def test_what_cannot_succeed_is_given_up_at_once(error: Exception) -> None:
    decision = decide(1, error, max_attempts=8, backoff=None, policy=POLICY)
    assert (decision.retry_after, decision.reason) == (None, "cannot succeed by trying again")


def test_the_last_attempt_gives_up() -> None:
    assert after(7, ValueError()) is not None
    assert after(8, ValueError()) is None
    assert after(8, Retry(after=5)) is None
    assert decide(1, ValueError(), max_attempts=1, backoff=None, policy=POLICY).reason == "gave up after 1 attempt"


def test_the_handler_and_the_error_have_their_say() -> None:
    assert after(1, ValueError(), backoff=7) == 7
    assert after(3, ValueError(), backoff=lambda attempt: attempt * 10) == 30
    assert after(1, Retry(after=60), backoff=7) == 60
    assert after(1, Retry(after=0)) == 0
    assert after(1, Retry("later"), backoff=7) == 7


def test_what_failed_together_does_not_come_back_together() -> None:
    policy = RetrySettings(jitter=0.1)
    for options in ({"backoff": 10}, {"backoff": lambda _: 10}):
        pauses = [after(1, ValueError(), policy=policy, **options) or 0.0 for _ in range(1000)]
        assert 9 <= min(pauses) < 9.5
        assert 10.5 < max(pauses) <= 11
    pauses = [after(1, Retry(after=10), policy=policy) or 0.0 for _ in range(1000)]
    assert 10 <= min(pauses) < 10.2  # never before what was asked for
    assert 10.8 < max(pauses) <= 11
    assert after(1, Retry(after=0), policy=policy) == 0
    assert (after(1, Retry(after=LONGEST_WAIT), policy=policy) or 0) <= LONGEST_WAIT
    assert (after(1, ValueError(), policy=policy, backoff=LONGEST_WAIT) or 0) <= LONGEST_WAIT


def broken(attempt: int) -> float:
    raise RuntimeError("a fault of its own")


@pytest.mark.parametrize(
    "backoff", [broken, lambda _: None, lambda _: -1, lambda _: float("nan"), lambda _: LONGEST_WAIT * 2, "soon"]
)
def test_a_backoff_that_makes_no_sense_falls_back_to_the_policy(backoff: Any) -> None:
    assert after(1, ValueError(), backoff=backoff) == 5


@pytest.mark.parametrize("seconds", [-1, float("nan"), LONGEST_WAIT * 2])
def test_retry_refuses_impossible_pauses(seconds: float) -> None:
    with pytest.raises(ValueError, match="seconds must be"):
        Retry(after=seconds)
