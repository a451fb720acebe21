"""Protocols with one rule broken. Each must break an invariant, or the rule is needless, or an invariant is missing."""

from __future__ import annotations

from dataclasses import dataclass, replace

from tests.model.configurations import BY_NAME, PURGE, REPLAY, TROUBLE
from tests.model.explore import Result, explore
from tests.model.invariants import COUNTED, DEATHS, FINISHED, LAST, ONE_EFFECT, ROUNDS, SOMEWHERE, WAY_OUT
from tests.model.protocol import Configuration


@dataclass(frozen=True)
class Mutant:
    """A broken rule.

    Attributes:
        rule: what is done instead; the word that the model knows it by.
        world: where it shows.
        breaks: invariants of which it breaks at least one; () where none is, because the rule only saves work.
        because: why it matters, or why not.
        states: how many are visited before it shows, at most.
    """

    rule: str
    world: Configuration
    breaks: tuple[str, ...]
    because: str
    states: int = 2500

    def explore(self, limit: int = 0) -> Result:
        """The world under this rule, up to the first invariant that breaks."""
        return explore(replace(self.world, mutant=self.rule), limit or self.states, first_only=True)


def _in(name: str, **options: object) -> Configuration:
    return replace(BY_NAME[name], **options)  # type: ignore[arg-type]


_PURGE_MIDWAY = _in("purge", troubles=0)
_REPLAY = _in("one message", troubles=1, relays=("new", "new"), rarely={PURGE: 1, REPLAY: 1})
_TWINS = _in("twins, not atomic", troubles=2, trouble=frozenset({"a machine dies", "a channel is lost"}))
_ON_ITS_WAY = ("lease", "send", "mark published", "deliver", "run")
# Both fail once; the copy of the database knows neither row, and gives the number of the first to the second message.
_NUMBER_GIVEN_AGAIN = _in(
    "failover",
    troubles=0,
    attempts=3,
    consumers=("new", "new"),
    begun=(
        "publish (message 0)",
        "publish (message 1)",
        *(f"{step} (message 0, round 1)" for step in _ON_ITS_WAY),
        *(f"{step} (message 1, round 1)" for step in _ON_ITS_WAY),
        "the handler fails (message 0, round 1)",
        "a copy of the database falls behind",
        "record the failure (message 0, round 1)",
        "acknowledge (message 0, round 1)",
    ),
)
_LATER = ("a process dies", "look, and claim later", "look whose a crash was, and count it later")
_DEATH_WHILE_LOOKING = _in("no id", trouble=frozenset(_LATER), troubles=3)
_UNROUTABLE = _in("unroutable", troubles=2)

MUTANTS = (
    Mutant("acknowledge before the commit", _in("one message"), (SOMEWHERE,), "a crash in between loses it"),
    Mutant(
        "no commit proof",
        _in("one message", trouble=TROUBLE | {"the handler rolls back and returns"}),
        (SOMEWHERE, FINISHED),
        "nothing was committed",
    ),
    Mutant(
        "failure without its retry",
        _in("one message"),
        (SOMEWHERE,),
        "a crash in between leaves a row that waits for nothing",
    ),
    Mutant(
        "no claim check",
        _in("not atomic"),
        (ONE_EFFECT, COUNTED, SOMEWHERE, FINISHED),
        "whoever lost its claim records over another",
    ),
    Mutant("no round fence", _in("two of each"), (ROUNDS,), "an old copy runs the retry before its pause is over"),
    Mutant(
        "mark by number alone",
        _in("failover", troubles=0),
        (SOMEWHERE, FINISHED),
        "another message is marked and never sent",
    ),
    Mutant(
        "rounds are marked alike",
        _in("failover", troubles=0),
        (SOMEWHERE, FINISHED),
        "a late mark of the first sending hits the retry that got its number",
    ),
    Mutant("no epoch", _REPLAY, (SOMEWHERE, FINISHED), "a late mark swallows a replay"),
    Mutant(
        "adopt anything",
        _TWINS,
        (SOMEWHERE, FINISHED),
        "one of two equal messages is taken for the other",
        states=15_000,
    ),
    Mutant(
        "count every abandoned claim",
        _in("not atomic"),
        (COUNTED,),
        "what never began, or what we ended, costs an attempt",
    ),
    Mutant("stop releases nothing", _in("stop, not atomic"), (COUNTED,), "a deploy costs an attempt"),
    Mutant("reports without identity", _in("one message"), (COUNTED,), "one death counts as often as it is reported"),
    Mutant(
        "phantoms stay", _in("no id"), (FINISHED,), "a crash without its content waits for a message that has gone on"
    ),
    Mutant(
        "a crash is looked for once",
        _DEATH_WHILE_LOOKING,
        (FINISHED,),
        "its row waits for ever if its message was claimed between the two",
    ),
    Mutant(
        "a counted crash is not taken over",
        _DEATH_WHILE_LOOKING,
        (FINISHED, DEATHS),
        "the death was told to a row that the claim made meanwhile leaves behind",
    ),
    Mutant("replay of round 1 only", _PURGE_MIDWAY, (FINISHED, SOMEWHERE), "the lost round stays lost"),
    Mutant(
        "a round under way is not replayed",
        _PURGE_MIDWAY,
        (FINISHED, SOMEWHERE),
        "its relay marks what the broker has lost",
    ),
    Mutant(
        "an earlier round stands for this one",
        _in("purge", troubles=2, trouble=frozenset({"lose the confirm", "a claim lapses though held"})),
        (SOMEWHERE, FINISHED),
        "a replay takes an old copy that is still to be sent for the round that was lost",
        states=15_000,
    ),
    Mutant("no way out of processing", _in("purge, no id"), (WAY_OUT,), "every verb refuses"),
    Mutant(
        "a failed round leaves its message",
        _UNROUTABLE,
        (SOMEWHERE, FINISHED),
        "it waits for a round that will never be sent",
    ),
    Mutant(
        "failed round stays failed",
        _in("unroutable", trouble=frozenset({"return as unroutable"}), troubles=1, rarely={"requeue": 1}),
        (WAY_OUT,),
        "neither what ends the message nor an operator lays it aside, and retention keeps both rows",
    ),
    Mutant("handler's database alone", _in("two databases"), (ONE_EFFECT, FINISHED), "the other database is forgotten"),
    Mutant(
        "a crash is told to one database",
        _in("two databases"),
        (FINISHED,),
        "its row waits for ever if the message was processed in another one meanwhile",
    ),
    Mutant("old row is not retired", _in("two databases"), (FINISHED, SOMEWHERE), "the old row waits for ever"),
    Mutant(
        "retention does not look at the outbox",
        _in(
            "retention",
            unroutable=True,
            trouble=TROUBLE | {"return as unroutable"},
            rarely={"retention deletes it": 1, "publish again": 1},
        ),
        (ONE_EFFECT, SOMEWHERE, FINISHED),
        "dedupe forgets what is still to be sent",
    ),
    Mutant(
        "compare by number alone",
        _NUMBER_GIVEN_AGAIN,
        (COUNTED,),
        "after a failover a run that is not claimed records its failure as another message's",
    ),
    Mutant(
        "success overwrites the count", _in("one message"), (DEATHS,), "a death that was told meanwhile is forgotten"
    ),
    Mutant("reports end at a lock", _in("one message"), (DEATHS,), "a killer dies oftener than its attempts allow"),
    Mutant(
        "last attempts run unclaimed",
        _in("one message"),
        (LAST,),
        "a copy runs once more before the death is told: a killer dies oftener than its attempts allow",
    ),
    # Rules that only save work, keep what is not promised, or guard what lies deeper than these worlds.
    Mutant(
        "sweep what comes again",
        _in("no id"),
        (),
        "its original runs as another message: one effect is not promised without ids",
    ),
    Mutant(
        "claims leave their marks",
        _in("stop, not atomic"),
        (),
        "every claim writes all three; a row should not tell of a claim that is over",
    ),
    Mutant("earlier rounds are not cancelled", _in("operators"), (), "the fence stops them; cancelling saves a send"),
    Mutant(
        "only the lease's holder marks",
        _in("one message"),
        (),
        "it is sent again and deduped; marking whoever holds it saves that",
    ),
    Mutant(
        "a claim's lost answer is forgotten",
        _in("not atomic"),
        (),
        "the sweep finds it; going on at once saves a lease",
    ),
    Mutant("content is not brought", _in("no id"), (), "a row shows no content"),
)
