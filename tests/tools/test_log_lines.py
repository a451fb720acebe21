"""The log of a process without what failed attempts are expected to say."""

from tools.log_lines import without_failures

BEGIN = "2026-11-29 04:00:00,123"
FAILED = f"""\
{BEGIN} ERROR messaging.consumer: Message 1 of the queue work: attempt 1 failed and will be repeated: ValueError: no
Traceback (most recent call last):
  File "handlers.py", line 7, in bill
ValueError: no
"""
TROUBLE = f"""\
{BEGIN} ERROR messaging.consumer: The consumer failed on a message; it is tried again in 5 s.
Traceback (most recent call last):
KeyError: 'queue'
"""
NEXT = f"{BEGIN} INFO messaging.consumer: Nothing is left to do.\n"


def test_only_the_tracebacks_of_failed_attempts_are_left_out() -> None:
    said = without_failures(f"Consuming work.\n{FAILED}{TROUBLE}{FAILED}{NEXT}")
    first = FAILED.splitlines(keepends=True)[0]
    assert said == f"Consuming work.\n{first}{TROUBLE}{first}{NEXT}"
