"""Reproduces CoDE from D3: data, views, loss, training, heads, evaluation, report and export. torch lives here only."""
