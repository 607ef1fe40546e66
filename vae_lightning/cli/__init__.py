"""The ``vae`` command line."""
