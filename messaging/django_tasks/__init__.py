"""Django's tasks as messages of this app: the backend for `TASKS`.

`TASKS = {"default": {"BACKEND": "messaging.django_tasks.MessagingBackend"}}`. The module is not called `tasks`, which
Celery would import wherever it finds one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.db import connections, router
from django.utils import timezone
from django.utils.functional import cached_property

from messaging import conf, signals
from messaging.conf import problems, rules
from messaging.conf.problems import Problem
from messaging.django_tasks.calls import content_of, known
from messaging.django_tasks.framework import (
    DEFAULT_TASK_PRIORITY,
    DEFAULT_TASK_QUEUE_NAME,
    TASK_MAX_PRIORITY,
    TASK_MIN_PRIORITY,
    BaseTaskBackend,
    InvalidTask,
    Task,
    TaskResult,
    TaskResultStatus,
    task_backends,
    task_enqueued,
)
from messaging.exceptions import ConfigurationError
from messaging.handlers import Handler, registry

P = ParamSpec("P")
R = TypeVar("R")

DEFAULTS = {
    "using": conf.DEFAULT_ALIAS,
    "database": "default",
    "prefix": None,
    "max_priority": None,
    "atomic": True,
    "timeout": None,
    "max_attempts": None,
    "backoff": None,
    "batch": None,
    "rehearse": False,
}
OF_BACKEND = ("prefix", "max_priority")  # all others are the handlers'
NO_PRIORITY = (
    'TASKS["{alias}"] cannot give the task a priority: its queue "{queue}" has none, as far as the settings say. '
    "Quorum queues have priorities from RabbitMQ 4.3 on, and two of them from 4.0 on; classic ones where "
    'x-max-priority is among their arguments. If yours has them, say how many in OPTIONS: {{"max_priority": 31}}.'
)


class MessagingBackend(BaseTaskBackend):
    """Runs Django's tasks as messages: they are enqueued in the caller's transaction and run by `manage.py consume`.

    Its `OPTIONS` are `using`, `database`, `prefix` and `max_priority`, and those of `@handler` that concern how a task
    runs: `atomic`, `timeout`, `max_attempts`, `backoff`, `batch` and `rehearse`. The page *Django's tasks* explains
    each of them.
    """

    supports_async_task = True
    supports_defer = True
    supports_get_result = True

    @property
    def supports_priority(self) -> bool:  # type: ignore[override]  # it depends on the queues
        """Whether some of its queues have priorities."""
        with suppress(ConfigurationError):  # which the checks tell
            return any(map(self._levels, self.broker_queues))
        return False

    @property
    def handler_options(self) -> dict[str, Any]:
        """What its handlers are registered with. Raises ConfigurationError for wrong `OPTIONS`."""
        return {name: value for name, value in self._checked.items() if name not in OF_BACKEND}

    @property
    def broker_queues(self) -> list[str]:
        """Its queues at the broker."""
        return [self.broker_queue(name) for name in sorted(self.queues or {DEFAULT_TASK_QUEUE_NAME})]

    def broker_queue(self, queue_name: str) -> str:
        """The queue at the broker for a task's queue; with `QUEUES = []`, which allows any name, one for all."""
        usual = "tasks." if self.alias == "default" else f"tasks.{self.alias}."
        prefix = self._checked["prefix"]
        name = queue_name if self.queues else DEFAULT_TASK_QUEUE_NAME
        return f"{usual if prefix is None else prefix}{name}"

    def validate_task(self, task: Task[..., Any]) -> None:
        """Raise InvalidTask for a task that cannot run here."""
        if task.priority != DEFAULT_TASK_PRIORITY and not self._levels(queue := self.broker_queue(task.queue_name)):
            raise InvalidTask(NO_PRIORITY.format(alias=self.alias, queue=queue))
        super().validate_task(task)
        known.add(task.module_path)

    def enqueue(self, task: Task[P, R], args: Sequence[Any], kwargs: Mapping[str, Any]) -> TaskResult[P, R]:
        """Have a task run, once the caller's transaction has committed, and not at all if that rolls back.

        Raises InvalidTask, TypeError for arguments that JSON cannot hold, and PublishError for what can never be sent.
        """
        from messaging.message import handler_context
        from messaging.publishing.publisher import publish

        self.validate_task(task)
        options, queue = self._checked, self.broker_queue(task.queue_name)
        result = TaskResult(
            task=task,
            id="",
            status=TaskResultStatus.READY,
            enqueued_at=timezone.now(),
            started_at=None,
            last_attempted_at=None,
            finished_at=None,
            args=list(args),
            kwargs=dict(kwargs),
            backend=self.alias,
            errors=[],
            worker_ids=[],
        )
        current = handler_context.get()
        row = publish(
            task.module_path,
            # A handler without a transaction may run again: what it enqueues has to be the same then.
            content_of(result, with_time=current is None or current.atomic),
            queue=queue,
            priority=self._amqp_priority(task.priority, queue),
            at=task.run_after,
            using=options["using"],
            database=None if current is not None else self._outbox(options["using"]),
        )
        object.__setattr__(result, "id", row.message_id)  # results are read-only to all others
        task_enqueued.send(type(self), task_result=result)
        return result

    def get_result(self, result_id: str) -> TaskResult[..., Any]:
        """The result with this id, of any of its queues. Raises TaskResultDoesNotExist, also once retention took it."""
        from messaging.django_tasks import results

        options = self._checked
        settings = conf.get(options["using"])
        databases = list(dict.fromkeys([options["database"], *settings.databases]))
        found: TaskResult[..., Any] = results.find(str(result_id), settings, databases, self.broker_queues)
        return found

    def check(self, **kwargs: Any) -> list[CheckMessage]:
        """The problems of its settings."""
        found: list[CheckMessage] = [*super().check(**kwargs)]
        wrong = [Error(one.text, hint=one.hint, id=f"messaging.{one.id}") for one in self._problems()]
        return [*found, *(wrong or (*self._check_queues(), *self._check_priority()))]

    def _check_queues(self) -> Iterator[CheckMessage]:
        mine, using = self.broker_queues, self._checked["using"]
        for queue in mine:
            if not rules.is_name(queue, rules.LONGEST_QUEUE) or queue.startswith("amq."):
                text = f'TASKS["{self.alias}"] has the queue "{queue}", which cannot be the name of one at the broker.'
                hint = "A name has at most 250 bytes, on one line, and does not begin with amq."
                yield Error(text, hint=hint, id="messaging.E051")
        for other in backends():
            if other.alias == self.alias:
                return  # the later one tells
            if not any(other._problems()) and other._checked["using"] == using:
                for queue in sorted({*mine} & {*other.broker_queues}):
                    text = f'TASKS["{other.alias}"] and TASKS["{self.alias}"] have the same queue "{queue}".'
                    yield Error(text, hint='Give one of them another "prefix" in OPTIONS.', id="messaging.E051")

    def _check_priority(self) -> Iterator[CheckMessage]:
        options = self._checked
        if options["max_priority"] is not None and options["using"] in conf.aliases():
            try:
                is_embedded = conf.get(options["using"]).scheme == "database"
            except ConfigurationError:
                return  # which other checks tell
            if is_embedded:
                text = (
                    f'TASKS["{self.alias}"]["OPTIONS"]["max_priority"] has no effect: the embedded broker ignores it.'
                )
                hint = "Tasks run in the order in which they become due. Use RabbitMQ where that is not enough."
                yield CheckWarning(text, hint=hint, id="messaging.W050")

    def _problems(self) -> Iterator[Problem]:
        yield from problems.of_tasks(self.alias, self.options)

    @cached_property
    def _checked(self) -> dict[str, Any]:
        """`OPTIONS` with the defaults. Raises ConfigurationError."""
        for problem in self._problems():
            raise ConfigurationError(str(problem))
        return {**DEFAULTS, **self.options}

    def _levels(self, queue: str) -> int:
        """The highest priority that a queue at the broker tells apart from lower ones; 0 without any."""
        options = self._checked
        if options["max_priority"] is not None:
            return int(options["max_priority"])
        own = conf.get(options["using"]).queue(queue)
        most = own.arguments.get("x-max-priority", 0)
        return most if own.type == "classic" and isinstance(most, int) else 0

    def _amqp_priority(self, priority: int, queue: str) -> int | None:
        """A task's priority as its queue has them: the lowest is 0, and what says nothing is in the middle."""
        levels = self._levels(queue)
        if not levels:
            return None
        return round((priority - TASK_MIN_PRIORITY) * levels / (TASK_MAX_PRIORITY - TASK_MIN_PRIORITY))

    def _outbox(self, using: str) -> str | None:
        """The database whose transaction the caller has begun, if one only of those that the alias serves.

        None leaves it to `publish()`: there is no choice, or the usual one is right, or nobody can tell.
        """
        databases = conf.get(using).databases
        if len(databases) < 2:
            return None
        from messaging.models import PublishedMessage
        from messaging.publishing.publisher import is_open

        begun = [database for database in databases if is_open(connections[database])]
        return begun[0] if len(begun) == 1 and begun[0] != router.db_for_write(PublishedMessage) else None


def backends() -> list[MessagingBackend]:
    """Those of `TASKS` that are this app's, in their order."""
    return [task_backends[alias] for alias in conf.task_aliases()]  # type: ignore[misc]  # as their settings say


def register_handlers() -> list[Handler]:
    """Have `consume` take from the queues of tasks, as far as the settings are right; the checks tell the rest."""
    from messaging.django_tasks.running import handlers_of, tell_failure

    right = [backend for backend in backends() if not any(backend._problems())]
    handlers = [handler for backend in right for handler in handlers_of(backend)]
    for handler in handlers:
        registry.add(handler)
    if handlers:
        signals.message_failed.connect(tell_failure, dispatch_uid="messaging.django_tasks")
    return handlers
