"""Training with Lightning: the LightningModule, optimizers, checkpoints, resume."""
