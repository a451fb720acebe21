"""What an operator can do to messages: one `Verb` each, for list actions, buttons and confirmation pages alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db.models import Q, QuerySet
from django.utils.translation import gettext_lazy as _
from django.utils.translation import ngettext

from messaging import operations
from messaging.admin.display import seconds_until
from messaging.db.clock import Now
from messaging.models import ProcessedMessage, PublishedMessage
from messaging.models.outbox import UNROUTED
from messaging.operations import Operator, Outcome
from messaging.publishing.rounds import under_way

if TYPE_CHECKING:
    from django.utils.functional import _StrPromise

In = ProcessedMessage.State
Out = PublishedMessage.State


class Verb(NamedTuple):
    """An operation on messages.

    Attributes:
        name: of the list action and of the page.
        permission: names `has_<permission>_permission()` of the admin.
        states: those in which it acts; None for all.
        act: the operation.
        label: in the list's menu.
        button: on pages.
        explanation: what it will do, on the confirmation page.
        done: what it did, for a number of messages.
        also: a condition under which it acts in another state.
        also_fits: that condition of one row, as far as its columns say.
        requires: what else a row must fulfil.
        lacking: why a row that does not is skipped.
        rounds: the states in which it acts on a round of an incoming message as well.
        destructive: whether its button warns.
    """

    name: str
    permission: str
    states: tuple[str, ...] | None
    act: Callable[[QuerySet[Any], Operator], Outcome]
    label: str | _StrPromise
    button: str | _StrPromise
    explanation: str | _StrPromise
    done: Callable[[int], str]
    also: Q | None = None
    also_fits: Callable[[Any], bool] = lambda _: False
    requires: Q = Q()
    lacking: str | _StrPromise = ""
    rounds: tuple[str, ...] = ()
    destructive: bool = False

    @property
    def right_state(self) -> Q:
        """The condition that a row is in one of its states."""
        return Q() if self.states is None else Q(state__in=self.states) | (self.also or Q(state__in=()))

    @property
    def eligible(self) -> Q:
        """The condition that it acts on a row."""
        return self.right_state & self.requires

    def fits(self, row: Any) -> bool:
        """Whether it acts on this row, as far as its columns say."""
        is_round = isinstance(row, PublishedMessage) and row.inbox_id is not None
        if is_round and row.state not in self.rounds and not self.also_fits(row):
            return False
        return self.states is None or row.state in self.states or self.also_fits(row)


def _is_abandoned(row: Any) -> bool:
    """Whether a message in processing seems to be held by no worker; the operation asks the database's clock."""
    lapsed = row.state == In.PROCESSING and row.leased_until is not None and seconds_until(row.leased_until) <= 0
    return lapsed or (row.state == In.PROCESSING and row.lease_token is None)


def _is_away(row: Any, unless: str) -> bool:
    """Whether a requeued message was sent; `unless` is what `waiting.annotated()` must not have found true of it."""
    return row.state == In.REQUEUED and not vars(row).get(unless, True)


_ABANDONED = Q(state=In.PROCESSING) & (Q(lease_token=None) | Q(leased_until__lte=Now()))
_OWN = Q(inbox__isnull=True)
_UNROUTED = Q(state=Out.PENDING) & UNROUTED
_ROUND = _("it is a round of an incoming message: act on that one")


INCOMING = (
    Verb(
        name="requeue",
        permission="requeue",
        states=(In.FAILED, In.RETRYING),
        act=operations.requeue,
        label=_("Requeue selected failures"),
        button=_("Requeue"),
        explanation=_(
            "Failed and retrying messages go back to their own queue at once, with fresh attempts. "
            "Other services do not see them again. "
            "Of what is being processed only that is taken whose worker has died, "
            "and of what was requeued before only what was sent more than ten minutes ago and has not come back."
        ),
        done=lambda count: (
            ngettext("%(count)d message was requeued.", "%(count)d messages were requeued.", count) % {"count": count}
        ),
        also=_ABANDONED | Q(Q(state=In.REQUEUED), ~under_way()),
        also_fits=lambda row: _is_abandoned(row) or _is_away(row, "is_under_way"),
        requires=Q(wire__isnull=False),
        lacking=_("its content was never received"),
    ),
    Verb(
        name="discard",
        permission="discard",
        states=(In.FAILED, In.RETRYING),
        act=operations.discard,
        label=_("Discard selected messages"),
        button=_("Discard"),
        explanation=_(
            "Failed and retrying messages are laid aside and will not run again. "
            "They can be restored until retention removes them. "
            "Of what is being processed only that is taken whose worker has died, "
            "and of what was requeued only what was sent and has not come back."
        ),
        done=lambda count: (
            ngettext("%(count)d message was discarded.", "%(count)d messages were discarded.", count) % {"count": count}
        ),
        also=_ABANDONED | Q(Q(state=In.REQUEUED), ~under_way(0)),
        also_fits=lambda row: _is_abandoned(row) or _is_away(row, "is_unsent"),
        destructive=True,
    ),
    Verb(
        name="restore",
        permission="discard",
        states=(In.DISCARDED,),
        act=operations.restore,
        label=_("Restore selected discarded messages"),
        button=_("Restore"),
        explanation=_("Discarded messages come back as failed; requeue them to run them again."),
        done=lambda count: (
            ngettext("%(count)d message was restored.", "%(count)d messages were restored.", count) % {"count": count}
        ),
    ),
)

OUTGOING = (
    Verb(
        name="publish",
        permission="publish",
        states=(Out.DRAFT, Out.FAILED),
        act=operations.release,
        label=_("Publish selected drafts and failed messages"),
        also=_UNROUTED,
        also_fits=lambda row: row.waits_for_queue,
        button=_("Publish"),
        explanation=_(
            "Drafts are published, and failed messages are sent once more under their own ids. "
            "What waits for a queue is sent now."
        ),
        done=lambda count: (
            ngettext("%(count)d message will be sent.", "%(count)d messages will be sent.", count) % {"count": count}
        ),
        requires=_OWN | Q(state=Out.PENDING),
        lacking=_ROUND,
    ),
    Verb(
        name="replay",
        permission="replay",
        states=(Out.PUBLISHED,),
        act=operations.replay,
        label=_("Replay selected published messages"),
        button=_("Replay"),
        explanation=_(
            "Published messages are sent again under their own ids, to repair a loss at the broker. "
            "What waits for a retry is sent again as well. Consumers that know an id already do not run it twice."
        ),
        done=lambda count: (
            ngettext("%(count)d message will be sent again.", "%(count)d messages will be sent again.", count)
            % {"count": count}
        ),
        rounds=(Out.PUBLISHED,),
    ),
    Verb(
        name="copy",
        permission="publish",
        states=None,
        act=operations.publish_copy,
        label=_("Publish a copy of selected messages"),
        button=_("Publish a copy"),
        explanation=_(
            "Each message's content is published as a new message with a new id: consumers will run it again."
        ),
        done=lambda count: (
            ngettext("%(count)d copy will be sent.", "%(count)d copies will be sent.", count) % {"count": count}
        ),
        requires=_OWN,
        lacking=_ROUND,
    ),
    Verb(
        name="discard",
        permission="discard",
        states=(Out.DRAFT, Out.PENDING, Out.FAILED),
        act=operations.discard_published,
        label=_("Discard selected messages"),
        button=_("Discard"),
        explanation=_(
            "Drafts, pending and failed messages are laid aside and not sent. "
            "One that is on its way to the broker at this moment may still arrive."
        ),
        done=lambda count: (
            ngettext("%(count)d message was discarded.", "%(count)d messages were discarded.", count) % {"count": count}
        ),
        requires=_OWN | Q(state=Out.FAILED),
        lacking=_ROUND,
        rounds=(Out.FAILED,),
        destructive=True,
    ),
    Verb(
        name="restore",
        permission="discard",
        states=(Out.DISCARDED,),
        act=operations.restore_published,
        label=_("Restore selected discarded messages"),
        button=_("Restore"),
        explanation=_("Discarded messages come back: as failed where sending had failed, else as drafts."),
        done=lambda count: (
            ngettext("%(count)d message was restored.", "%(count)d messages were restored.", count) % {"count": count}
        ),
        requires=_OWN,
        lacking=_ROUND,
    ),
)
