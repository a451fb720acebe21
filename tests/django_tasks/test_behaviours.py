"""What Django's own tests ask of its backends, each with a test of ours.

`BEHAVIOURS` lists the tests in tests/tasks/ of Django 6.1 that are about a backend, or about tasks with one, and by
which test of ours, here or in `test_running`, the same is shown of ours. Where ours does it otherwise, that is said.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import django
import pytest
from asgiref.sync import async_to_sync
from django.db import connection, transaction
from django.test.utils import CaptureQueriesContext
from django.utils import timezone
from django.utils.module_loading import import_string
from pytest_django import Settings

from messaging.models import PublishedMessage
from messaging.testing import drain
from tests.django_tasks import jobs
from tests.django_tasks.conftest import BACKEND, Use

framework = pytest.importorskip("messaging.django_tasks.framework")
package = "django.tasks" if django.VERSION >= (6, 0) else "django_tasks"
default_task_backend = import_string(f"{package}.default_task_backend")
exceptions = pytest.importorskip(f"{package}.exceptions")
suffix = "" if django.VERSION >= (6, 0) else "Error"
InvalidTask, InvalidTaskBackend = (
    getattr(exceptions, f"{name}{suffix}") for name in ("InvalidTask", "InvalidTaskBackend")
)
LOGGER = package
MAIN = f"{package}.base.task"

pytestmark = [pytest.mark.django_db, pytest.mark.usefixtures("tasks")]


def async_test(test: Callable[..., Any]) -> Callable[..., None]:
    """A test that runs in an event loop of its own, and in no transaction."""

    @pytest.mark.django_db(transaction=True)
    @functools.wraps(test)
    def run() -> None:
        async_to_sync(test)()  # whose database connection is this thread's

    return run


OTHERWISE = {
    "the task runs later": "what the immediate backend shows at once is there once a consumer has run it",
    "results can be had": "by any process",
    "run_after is supported": "as a scheduled message",
    "failures are tried again": "one that was interrupted by KeyboardInterrupt has had an attempt like others",
    "nothing is left to clear": "the rows are the database's, which a test's transaction takes back",
}

BEHAVIOURS: dict[str, str] = {
    # of test_tasks
    "TaskTestCase.test_using_correct_backend": "test_the_backend_is_ours",
    "TaskTestCase.test_task_decorator": "test_the_decorator_makes_tasks",
    "TaskTestCase.test_enqueue_task": "test_an_enqueued_task_is_ready",
    "TaskTestCase.test_enqueue_task_async": "test_async_code_enqueues_tasks",
    "TaskTestCase.test_enqueue_with_invalid_argument": "test_arguments_that_json_lacks_are_refused",
    "TaskTestCase.test_aenqueue_with_invalid_argument": "test_arguments_that_json_lacks_are_refused",
    "TaskTestCase.test_using_priority": "test_priorities_are_as_django_has_them",
    "TaskTestCase.test_using_queue_name": "test_using_changes_a_copy",
    "TaskTestCase.test_using_run_after": "test_using_changes_a_copy",
    "TaskTestCase.test_using_unknown_backend": "test_unknown_backends_are_refused",
    "TaskTestCase.test_using_missing_backend": "test_unknown_backends_are_refused",
    "TaskTestCase.test_using_creates_new_instance": "test_using_changes_a_copy",
    "TaskTestCase.test_chained_using": "test_using_changes_a_copy",
    "TaskTestCase.test_refresh_result": "test_refreshing_what_has_not_changed_changes_nothing",
    "TaskTestCase.test_naive_datetime": "test_a_naive_run_after_is_refused",
    "TaskTestCase.test_invalid_priority": "test_priorities_are_as_django_has_them",
    "TaskTestCase.test_unknown_queue_name": "test_unknown_queues_are_refused_unless_any_is_allowed",
    "TaskTestCase.test_call_task": "test_a_task_can_be_called",
    "TaskTestCase.test_call_task_async": "test_async_code_calls_tasks",
    "TaskTestCase.test_call_async_task": "test_async_code_calls_tasks",
    "TaskTestCase.test_call_async_task_sync": "test_a_task_can_be_called",
    "TaskTestCase.test_get_result": "test_a_result_is_found_by_its_id",
    "TaskTestCase.test_get_result_async": "test_async_code_finds_results",
    "TaskTestCase.test_get_missing_result": "test_what_never_was_has_no_result",
    "TaskTestCase.test_get_incorrect_result": "test_a_result_of_another_task_is_refused",
    "TaskTestCase.test_get_incorrect_result_async": "test_a_result_of_another_task_is_refused",
    "TaskTestCase.test_invalid_function": "test_only_functions_of_a_module_are_tasks",
    "TaskTestCase.test_get_backend": "test_the_backend_is_ours",
    "TaskTestCase.test_name": "test_a_task_has_a_name_and_a_path",
    "TaskTestCase.test_module_path": "test_a_task_has_a_name_and_a_path",
    "TaskTestCase.test_pickle_task": "test_tasks_and_results_can_be_pickled",
    "TaskTestCase.test_pickle_task_result": "test_tasks_and_results_can_be_pickled",
    "TaskTestCase.test_no_backends": "test_without_backends_nothing_is_enqueued",
    "TaskTestCase.test_task_error_invalid_exception": "test_an_error_names_a_class_of_exceptions",
    "TaskTestCase.test_task_error_unknown_module": "test_an_error_names_a_class_of_exceptions",
    "TaskTestCase.test_takes_context_without_taking_context": "test_what_takes_no_context_is_refused_one",
    "TaskTestCase.test_run_after_in_decorator": "test_run_after_is_no_part_of_a_task_at_rest",
    # of test_dummy_backend
    "DummyBackendTestCase.test_using_correct_backend": "test_the_backend_is_ours",
    "DummyBackendTestCase.test_enqueue_task": "test_an_enqueued_task_is_ready",
    "DummyBackendTestCase.test_enqueue_task_async": "test_async_code_enqueues_tasks",
    "DummyBackendTestCase.test_get_result": "test_a_result_is_found_by_its_id",
    "DummyBackendTestCase.test_get_result_async": "test_async_code_finds_results",
    "DummyBackendTestCase.test_refresh_result": "test_a_result_is_refreshed",
    "DummyBackendTestCase.test_refresh_result_async": "test_async_code_refreshes_results",
    "DummyBackendTestCase.test_get_missing_result": "test_what_never_was_has_no_result",
    "DummyBackendTestCase.test_enqueue_logs": "test_what_is_enqueued_is_logged",
    "DummyBackendTestCase.test_errors": "test_an_enqueued_task_is_ready",
    "DummyBackendTestCase.test_validate_disallowed_async_task": "test_the_backend_says_what_it_supports",
    "DummyBackendTestCase.test_check": "test_nothing_is_wrong_with_the_defaults",
    "DummyBackendTestCase.test_takes_context": "test_a_task_is_told_of_itself",
    "DummyBackendTestCase.test_clear": "otherwise: nothing is left to clear",
    "DummyBackendTestCase.test_validate_on_enqueue": "test_a_task_is_validated_when_it_is_enqueued",
    "DummyBackendTestCase.test_validate_on_aenqueue": "test_a_task_is_validated_when_it_is_enqueued",
    "DummyBackendTransactionTestCase.test_doesnt_wait_until_transaction_commit_by_default": (
        "test_a_task_is_enqueued_in_the_transaction"
    ),
    # of test_immediate_backend
    "ImmediateBackendTestCase.test_using_correct_backend": "test_the_backend_is_ours",
    "ImmediateBackendTestCase.test_enqueue_task": "test_a_task_that_ran_is_successful",
    "ImmediateBackendTestCase.test_enqueue_task_async": "test_a_task_that_ran_is_successful",
    "ImmediateBackendTestCase.test_catches_exception": "test_a_task_that_raises_has_failed",
    "ImmediateBackendTestCase.test_throws_keyboard_interrupt": "otherwise: failures are tried again",
    "ImmediateBackendTestCase.test_complex_exception": "test_a_task_that_raises_has_failed",
    "ImmediateBackendTestCase.test_complex_return_value": "test_what_json_cannot_hold_is_no_return_value",
    "ImmediateBackendTestCase.test_result": "test_what_a_task_returns_is_kept",
    "ImmediateBackendTestCase.test_result_async": "test_what_a_task_returns_is_kept",
    "ImmediateBackendTestCase.test_cannot_get_result": "otherwise: results can be had",
    "ImmediateBackendTestCase.test_cannot_refresh_result": "otherwise: results can be had",
    "ImmediateBackendTestCase.test_cannot_pass_run_after": "otherwise: run_after is supported",
    "ImmediateBackendTestCase.test_enqueue_logs": "test_receivers_are_told_of_a_success",
    "ImmediateBackendTestCase.test_failed_logs": "test_receivers_are_told_of_a_failure_after_the_last_attempt",
    "ImmediateBackendTestCase.test_successful_task_no_none_type_in_logs": "test_receivers_are_told_of_a_success",
    "ImmediateBackendTestCase.test_takes_context": "test_a_task_is_told_of_itself",
    "ImmediateBackendTestCase.test_context": "test_a_task_is_told_of_itself",
    "ImmediateBackendTestCase.test_validate_on_enqueue": "test_a_task_is_validated_when_it_is_enqueued",
    "ImmediateBackendTestCase.test_validate_on_aenqueue": "test_a_task_is_validated_when_it_is_enqueued",
    "ImmediateBackendTransactionTestCase.test_doesnt_wait_until_transaction_commit_by_default": (
        "otherwise: the task runs later"
    ),
    # of test_custom_backend
    "CustomBackendTestCase.test_using_correct_backend": "test_the_backend_is_ours",
    "CustomBackendTestCase.test_enqueue_async_task_on_non_async_backend": "test_the_backend_says_what_it_supports",
    "CustomBackendTestCase.test_backend_does_not_support_priority": (
        "test_priorities_are_refused_where_queues_have_none"
    ),
    "CustomBackendTestCase.test_options": "test_options_are_the_handlers",
}


def test_each_behaviour_has_its_test() -> None:
    from tests.django_tasks import test_running

    for behaviour, ours in BEHAVIOURS.items():
        if ours.startswith("otherwise: "):
            assert ours.removeprefix("otherwise: ") in OTHERWISE, behaviour
        else:
            assert ours in globals() or hasattr(test_running, ours), behaviour


def test_the_backend_is_ours() -> None:
    from messaging.django_tasks import MessagingBackend

    backend = jobs.noop.get_backend()
    assert default_task_backend == framework.task_backends["default"] == backend
    assert isinstance(backend, MessagingBackend)
    assert (backend.alias, backend.options) == ("default", {})


def test_the_backend_says_what_it_supports() -> None:
    backend = jobs.noop.get_backend()
    assert backend.supports_async_task
    assert backend.supports_defer
    assert backend.supports_get_result
    assert not backend.supports_priority
    backend.validate_task(jobs.anoop)


def test_the_decorator_makes_tasks() -> None:
    for made in (jobs.noop, jobs.anoop, jobs.bare):
        assert isinstance(made, framework.Task)


@pytest.mark.parametrize("task", [jobs.noop, jobs.anoop], ids=["sync", "async"])
def test_an_enqueued_task_is_ready(task: Any) -> None:
    with CaptureQueriesContext(connection) as queries:
        result = task.enqueue(1, two=3)
    assert sum(query["sql"].startswith("INSERT") for query in queries) == 1
    check_ready(result, task, [1], {"two": 3})
    assert PublishedMessage.objects.get().message_id == result.id


def check_ready(result: Any, task: Any, args: list[Any], kwargs: dict[str, Any]) -> None:
    assert result.status == "READY"
    assert not result.is_finished
    assert result.enqueued_at is not None
    assert (result.started_at, result.last_attempted_at, result.finished_at) == (None, None, None)
    with pytest.raises(ValueError, match="Task has not finished yet"):
        _ = result.return_value
    assert (result.task, result.args, result.kwargs) == (task, args, kwargs)
    assert (result.attempts, result.errors, result.worker_ids) == (0, [], [])


@async_test
async def test_async_code_enqueues_tasks() -> None:
    for task in (jobs.noop, jobs.anoop):
        result = await task.aenqueue()
        check_ready(result, task, [], {})
    assert await PublishedMessage.objects.acount() == 2


@async_test
async def test_async_code_finds_results() -> None:
    result = await jobs.noop.aenqueue()
    assert await jobs.noop.aget_result(result.id) == result
    assert await default_task_backend.aget_result(result.id) == result
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        await jobs.noop.aget_result("123")


@async_test
async def test_async_code_refreshes_results() -> None:
    result = await jobs.noop.aenqueue()
    await PublishedMessage.objects.aupdate(state="failed", error="no queue")
    assert result.status == "READY"
    await result.arefresh()
    assert result.status == "FAILED"


@async_test
async def test_async_code_calls_tasks() -> None:
    assert await jobs.meaning.acall() == 42
    assert await jobs.anoop.acall() is None


def test_a_task_can_be_called() -> None:
    assert jobs.meaning.call() == 42
    assert jobs.anoop.call() is None


def test_arguments_that_json_lacks_are_refused() -> None:
    with pytest.raises(TypeError, match="Unsupported type"):
        jobs.noop.enqueue(timezone.now())
    assert not PublishedMessage.objects.exists()


def test_using_changes_a_copy() -> None:
    now = timezone.now()
    later = jobs.noop.using(run_after=now)
    elsewhere = later.using(queue_name="queue_1")
    assert (elsewhere.queue_name, elsewhere.run_after) == ("queue_1", now)
    assert (later.queue_name, later.run_after) == ("default", now)
    assert (jobs.noop.queue_name, jobs.noop.run_after) == ("default", None)
    assert jobs.noop.using() == jobs.noop
    assert jobs.noop.using() is not jobs.noop


def test_unknown_backends_are_refused(use: Use) -> None:
    use(others={"missing": {"BACKEND": "does.not.exist"}})
    with pytest.raises(InvalidTaskBackend, match="The connection 'unknown' doesn't exist"):
        jobs.noop.using(backend="unknown")
    with pytest.raises(InvalidTaskBackend, match="Could not find backend 'does\\.not\\.exist'"):
        jobs.noop.using(backend="missing")


def test_refreshing_what_has_not_changed_changes_nothing() -> None:
    result = jobs.noop.using(run_after=timezone.now() + timedelta(hours=1)).enqueue(1, two=[3])
    before = dataclasses.asdict(result)
    result.refresh()
    assert dataclasses.asdict(result) == before


def test_a_result_is_refreshed() -> None:
    result = jobs.meaning.enqueue()
    drain()
    assert result.status == "READY"
    result.refresh()
    assert (result.status, result.return_value) == ("SUCCESSFUL", 42)


def test_a_naive_run_after_is_refused(settings: Settings) -> None:
    if not settings.USE_TZ:
        assert jobs.noop.using(run_after=datetime.now()).run_after  # noqa: DTZ005
        return
    with pytest.raises(InvalidTask, match="run_after must be an aware datetime"):
        jobs.noop.using(run_after=datetime.now())  # noqa: DTZ005


def test_priorities_are_as_django_has_them(use: Use) -> None:
    use(max_priority=10)
    assert jobs.noop.using(priority=1).priority == 1
    assert jobs.noop.priority == 0
    for wrong in (-101, 101, 3.1):
        with pytest.raises(InvalidTask, match="priority must be a whole number between -100 and 100"):
            jobs.noop.using(priority=wrong)  # type: ignore[arg-type]
    for right in (-100, 0, 100):
        jobs.noop.using(priority=right)


def test_unknown_queues_are_refused_unless_any_is_allowed(use: Use) -> None:
    with pytest.raises(InvalidTask, match="Queue 'queue-2' is not valid for backend"):
        jobs.noop.using(queue_name="queue-2")
    use(others={"any": {"BACKEND": BACKEND, "QUEUES": []}})
    elsewhere = jobs.leave.using(queue_name="queue-2", backend="any")
    result = elsewhere.enqueue("key")
    drain()
    result.refresh()
    assert result.status == "SUCCESSFUL"
    assert elsewhere.get_result(result.id).task.queue_name == "queue-2"


def test_a_result_is_found_by_its_id() -> None:
    result = jobs.noop.using(queue_name="queue_1").enqueue(1, two=3)
    assert jobs.noop.get_result(result.id) == result
    assert default_task_backend.get_result(result.id) == result


@pytest.mark.parametrize("unknown", ["123", "", "\0", "é" * 300, 7, "0199d5a0-0000-7000-8000-000000000000"])
def test_what_never_was_has_no_result(unknown: Any) -> None:
    jobs.noop.enqueue()
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        jobs.noop.get_result(unknown)


@async_test
async def test_a_result_of_another_task_is_refused() -> None:
    result = await jobs.noop.aenqueue()
    with pytest.raises(exceptions.TaskResultMismatch, match="Task does not match"):
        await jobs.bare.aget_result(result.id)


def test_only_functions_of_a_module_are_tasks() -> None:
    def local() -> None:
        """A function of a function."""

    for wrong in (any, local):
        with pytest.raises(InvalidTask, match="defined at a module level"):
            import_string(MAIN)()(wrong)


def test_a_task_has_a_name_and_a_path() -> None:
    assert jobs.noop.name == "noop"
    assert jobs.noop.module_path == "tests.django_tasks.jobs.noop"
    assert import_string(jobs.anoop.module_path) is jobs.anoop


@pytest.mark.skipif(django.VERSION < (6, 1), reason="Django 6.1 has it")
def test_tasks_and_results_can_be_pickled() -> None:
    result = jobs.noop.enqueue(1)
    assert pickle.loads(pickle.dumps(jobs.noop)) == jobs.noop
    assert pickle.loads(pickle.dumps(result)) == result


def test_without_backends_nothing_is_enqueued(settings: Settings) -> None:
    settings.TASKS = {}
    with pytest.raises(InvalidTaskBackend):
        jobs.noop.enqueue()


def test_an_error_names_a_class_of_exceptions(use: Use) -> None:
    use(max_attempts=1)
    result = jobs.value_error.enqueue()
    drain(raise_errors=False)
    result.refresh()
    assert result.errors[0].exception_class is ValueError
    for path, error in (("subprocess.run", ValueError), ("does.not.exist", ImportError)):
        object.__setattr__(result.errors[0], "exception_class_path", path)
        with pytest.raises(error):
            _ = result.errors[0].exception_class


def test_what_takes_no_context_is_refused_one() -> None:
    with pytest.raises(InvalidTask, match="does not have a first argument of 'context'"):
        import_string(MAIN)(takes_context=True)(jobs.meaning.func)


def test_run_after_is_no_part_of_a_task_at_rest() -> None:
    with pytest.raises(TypeError):
        import_string(MAIN)(run_after=timezone.now())(jobs.meaning.func)


def test_what_is_enqueued_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG, logger=LOGGER):
        result = jobs.noop.enqueue()
    [record] = [record for record in caplog.records if record.name.startswith(LOGGER)]
    assert "enqueued" in record.getMessage()
    assert result.id in record.getMessage()


def test_nothing_is_wrong_with_the_defaults() -> None:
    assert list(jobs.noop.get_backend().check()) == []


def test_a_task_is_validated_when_it_is_enqueued(use: Use) -> None:
    task = jobs.noop.using(queue_name="queue_1")
    use(queues=["queue-2"])
    with pytest.raises(InvalidTask, match="Queue 'queue_1' is not valid for backend"):
        task.enqueue()


def test_a_task_is_enqueued_in_the_transaction() -> None:
    with transaction.atomic():
        lost = jobs.noop.enqueue()
        assert jobs.noop.get_result(lost.id) == lost
        transaction.set_rollback(True)
    with pytest.raises(exceptions.TaskResultDoesNotExist):
        jobs.noop.get_result(lost.id)
    with transaction.atomic():
        kept = jobs.leave.enqueue("key")
    assert jobs.leave.get_result(kept.id) == kept
