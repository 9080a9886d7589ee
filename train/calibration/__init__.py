"""From a target error rate to a policy: thresholds whose error rates are bounded, on images that nothing was fitted on.

`sample.py` counts photographs, `bounds.py` has the statistics, `slices.py` splits by format, size and compression,
`thresholds.py` chooses, `write.py` makes policy and page.
"""
