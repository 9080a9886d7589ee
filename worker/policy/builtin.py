"""The policy where no file is set. Its thresholds suit no particular model; `review` is wide on purpose.

What says itself that it was generated is fake; no declaration makes anything real, because metadata is free to write
and a signed photograph of a screen is a photograph. What the scores say nothing about (docs/policy.md has the
measurement) is not judged.
"""

from __future__ import annotations

from worker.policy.rules import Otherwise, Rule, RuleText

BEFORE_SCORES = (  # of every policy that is written for somebody, too (`train.main calibrate`)
    Rule(when='evidence.declared == "generated"', decision="fake"),
    Rule(when="min(image.width, image.height) <= 128", decision="review", label="not_applicable"),
)
BUILT_IN = RuleText(
    name="default",
    rules=(
        *BEFORE_SCORES,
        Rule(when="scores.linear >= 0.65", decision="fake"),
        Rule(when="scores.linear < 0.35", decision="real"),
    ),
    otherwise=Otherwise(decision="review"),
)
