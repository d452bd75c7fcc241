"""Models and training loops over codec primitives, in PyTorch. Never imports av or ray."""
