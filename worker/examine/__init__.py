"""Everything that parses bytes of an image, done in confined child processes that may die for it.

    worker ──fork me one──▶ zygote (imports the decoders once, never sees an image) ──fork──▶ child, child, …
      │  ▲                                                                                     ▲  │
      │  └───────────── findings: format, size, evidence, or why not ──────────────────────────┼──┘
      └── encoded bytes, in the child's block of shared memory ────────────────────────────────┘
          pixels come back in the region of shared memory that the model server reads

On the worker's side: `pool.py` (the one that the Decode stage calls), `lanes.py`, `watch.py`, `zygote.py`'s client.
In the child: `child.py` runs, per image, headers (format, size, cost), pixels (the crop) and provenance (evidence),
after `confine.py` has taken away what none of them needs.
"""
