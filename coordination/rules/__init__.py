"""Dubbo's governance rules: read from ZooKeeper, followed and applied to providers; and overrides, written."""

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
