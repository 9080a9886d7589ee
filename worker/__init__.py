"""Assay, the streaming deepfake-moderation worker: start reading at pipeline.py; `python -m worker` lists commands."""

__version__ = "0.1.0"
