"""A gRPC channel over a directory: which endpoint gets a call, how often it is sent, and with what outcome."""

from coordination.channel.channel import DiscoveredChannel
from coordination.channel.load_balancing import Picker, PickerName, PowerOfTwoChoices, by_name
from coordination.channel.outcomes import maybe_sent_before, never_sent
from coordination.channel.policies import Broadcast, Failfast, Failover, Failsafe, Forking, Idempotency, Policy

__all__ = [
    "Broadcast",
    "DiscoveredChannel",
    "Failfast",
    "Failover",
    "Failsafe",
    "Forking",
    "Idempotency",
    "Picker",
    "PickerName",
    "Policy",
    "PowerOfTwoChoices",
    "by_name",
    "maybe_sent_before",
    "never_sent",
]
