"""A queue as it is at the broker, from wherever that is known."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Self

# Where an argument and a policy both set one of these, the broker takes the smaller.
_SMALLER_WINS = frozenset(
    {
        "message-ttl", "max-length", "max-length-bytes", "expires", "delivery-limit",
        "consumer-timeout", "delayed-retry-min", "delayed-retry-max",
    }
)  # fmt: skip
_POLICY_WINS = frozenset({"delayed-retry-type"})


@dataclass(frozen=True, slots=True)
class FoundQueue:
    """A queue that exists.

    Attributes:
        type: "quorum", "classic" or "stream".
        arguments: those it was declared with.
        policy: what policies say of it, operator policies included; empty where they cannot be seen.
        state: the broker's word for it; "" where it is not known.
    """

    name: str
    type: str
    durable: bool = True
    exclusive: bool = False
    auto_delete: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)
    policy: Mapping[str, Any] = field(default_factory=dict)
    policy_name: str = ""
    state: str = ""

    @classmethod
    def from_api(cls, told: Mapping[str, Any]) -> Self:
        """Read the management API's description, in which young queues lack what is counted."""
        arguments, policy = told.get("arguments"), told.get("effective_policy_definition")
        arguments = arguments if isinstance(arguments, Mapping) else {}
        return cls(
            name=str(told.get("name", "")),
            type=str(told.get("type") or arguments.get("x-queue-type") or "classic"),
            durable=bool(told.get("durable", True)),
            exclusive=bool(told.get("exclusive")),
            auto_delete=bool(told.get("auto_delete")),
            arguments=arguments,
            policy=policy if isinstance(policy, Mapping) else {},
            policy_name=str(told.get("policy") or told.get("operator_policy") or ""),
            state=str(told.get("state") or ""),
        )

    def value(self, key: str) -> Any:
        """What holds for `key`, such as "message-ttl", whether by argument or by policy; None if nothing does."""
        argument, policy = self.arguments.get(f"x-{key}"), self.policy.get(key)
        if argument is None or policy is None:
            return policy if argument is None else argument
        if key in _POLICY_WINS:
            return policy
        is_number = isinstance(argument, int) and isinstance(policy, int)
        return min(argument, policy) if key in _SMALLER_WINS and is_number else argument

    def is_by_policy(self, key: str) -> bool:
        """Whether what holds for `key` comes from a policy."""
        return key in self.policy and self.arguments.get(f"x-{key}") != self.value(key)

    def current(self) -> dict[str, Any]:
        """Its arguments, the type among them however it was given."""
        return {**self.arguments, "x-queue-type": self.type}
