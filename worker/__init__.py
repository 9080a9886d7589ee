"""Assay: the streaming deepfake-moderation worker. Start reading at pipeline.py; `python -m worker` lists the commands."""

__version__ = "0.1.0"
