"""Scores and what else is known of an image -> a decision with its reasons. Pure, and the same for a stored verdict."""

from worker.policy.facts import Facts, named_headers
from worker.policy.load import load_policy, parse_policy
from worker.policy.outcome import Outcome
from worker.policy.policy import Policy
from worker.policy.rules import Otherwise, Rule, Rules, RuleText
from worker.policy.thresholds import Thresholds

__all__ = [
    "Facts",
    "Otherwise",
    "Outcome",
    "Policy",
    "Rule",
    "RuleText",
    "Rules",
    "Thresholds",
    "load_policy",
    "named_headers",
    "parse_policy",
]
