"""Dubbo's governance rules: read from ZooKeeper, followed, applied to providers; and written for an operator."""

from coordination.rules.overrides import Changes, OverrideRefused, Overrides
from coordination.rules.rule_set import Rules
from coordination.rules.rule_watcher import RuleWatcher

__all__ = [
    "Changes",
    "OverrideRefused",
    "Overrides",
    "RuleWatcher",
    "Rules",
]
