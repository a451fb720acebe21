"""A model of the protocol, and a checker that visits every state of it.

What is durable is small: outbox rows, what the broker holds, inbox rows. Around it are relays and consumers, which may
die between any two steps. `states` says what a state is, `relaying`, `consuming`, `recording`, `crashing`, `operating`
and `outside` what may happen in it: one database transaction or one broker event a step. `explore` goes through all of
them, `invariants` says what must hold, `configurations` how large the world is, and `mutants` what must be noticed.

`python -m tests.model` (`make model`) explores the full sizes.
"""
