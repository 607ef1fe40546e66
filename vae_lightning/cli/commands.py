"""The commands of ``vae``, and what they do."""

EXPLORE = {
    "sample": "draw images from a model",
    "reconstruct": "encode and decode images, with the error of each",
    "traverse": "move one latent dimension of an image at a time",
    "interpolate": "go from one image or class to another through the latent space",
    "encode": "write the latents of images, with their file names",
    "score": "say how surprising images are, for finding anomalies",
    "figure": "draw a figure of a finished model again, with other options",
    "density": "fit a density to the latents of a model, for `vae sample --density`",
    "explore": "make a web page in which the latent space is explored by hand",
    "export": "write a folder with a model card, safetensors and ONNX, for sharing a model",
    "compare": "compare models on the same images with the same noise, in pairs",
    "udr": "score disentanglement by whether trainings with other seeds find the same latents",
    "rate_distortion": "draw reconstruction against KL of several runs, such as a sweep of beta",
}
"""Commands that use a trained model without Lightning."""

COMMANDS = {
    "fit": "train a model, with figures; without options: a VAE on the bundled digits",
    "validate": "measure a checkpoint on the validation images",
    "test": "measure a checkpoint on the test images; writes test/metrics.json in its run folder",
    "predict": "write reconstructions and latents to predictions/ in the run folder",
    "sweep": "train once for each combination of options in a file, and compare",
    **EXPLORE,
    "completion": "print a script that completes commands and options in bash, zsh or fish",
}
