"""Images to train on and to measure with: folders, WebDataset shards, and D3 from its hub."""
