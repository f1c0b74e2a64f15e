"""Training: the Trainer, the solver for frozen features, loss weights, and what is fitted to held-out documents."""
