"""What `python -m train.main` prints without arguments."""

from __future__ import annotations

OVERVIEW = """\
Reproduces CoDE and measures it.

  data inspect DIR            what is in a folder or in shards, and what gives the label away
  data d3 SOURCE OUT          D3 (hub or parquet) + its real images -> WebDataset shards
  data equalise DIR OUT       format, size and compression alike for both classes
  fit                         train an encoder (recipes: {recipes})
  sweep                       the same with fields varied: ablations, seeds; goes on where it was
  heads                       linear, 1-NN and one-class SVM on its embeddings
  evaluate, report            protocol, metrics with intervals, robustness; one HTML page
  compare, coverage           paired tests of models on the same images; whether intervals hold
  paper                       all tables and figures from any number of runs and evaluations
  calibrate                   thresholds for a bounded false-positive rate, as the worker's policy
  fuse                        one rule over several detectors, where it beats the best of them
  export, import-release      a folder that Triton serves; the published weights as arrays
  import-detector             CNNDetection, UnivFD, Community Forensics from their published files
  bench, simulate             views and training steps per second; a full run's input side, without its images

Next: {next}
Every command has --help with an example; docs/training.md goes from nothing to a served model.
"""
