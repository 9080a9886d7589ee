"""Why this verdict: the rule and its margins, evidence, neighbours, and which parts of the image speak for it.

`report.explain` puts an Explanation together from the stored verdict, the policy at hand and, where the bytes can still
be had (`origin.py`), the served model; what cannot be had is said and nothing else fails for it. `panel.py` shows it on
a terminal, `page.py` as a folder that opens offline.
"""
