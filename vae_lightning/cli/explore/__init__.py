"""The commands that use a trained model. They import no Lightning, unless they read its data."""
