"""The lists of classes: ``vae fit --model.help`` without a class, ``--model.prior.help``, ..."""

import textwrap
from collections.abc import Sequence

from vae_lightning.cli import option_list
from vae_lightning.cli.bundled_configs import config_folder

_WIDTH = 80
_NOUNS = {
    "--model": "models",
    "--data": "data sets",
    "--model.prior": "priors p(z)",
    "--model.posterior": "posteriors q(z|x)",
    "--model.likelihood": "likelihoods p(x|z)",
    "--model.encoder": "encoders",
    "--model.decoder": "decoders",
}


def asked(args: Sequence[str]) -> str | None:
    """Return the option whose classes are asked for: one with ``.help`` and without a class."""
    for i, argument in enumerate(args):
        flag = argument.removesuffix(".help")
        following = args[i + 1 : i + 2]
        is_alone = not following or following[0].startswith("-")
        if argument != flag and flag in _NOUNS and is_alone:
            return flag
    return None


def text(flag: str) -> str:
    """Return the classes that an option takes, with one sentence for each."""
    summaries = option_list.read()["summaries"][flag]
    blocks = [f"{_NOUNS[flag]} ({flag} CLASS):", *_rows(summaries)]
    if flag == "--model":
        blocks += ["", "configurations (--config NAME), which also combine parts to models:"]
        blocks += _rows(_configurations())
    blocks += [
        "",
        f"vae fit {flag}.help CLASS lists the arguments of a class.",
        f"A class of your own is given with its module: {flag} my_module.MyClass",
    ]
    return "\n".join(blocks)


def _configurations() -> dict[str, str]:
    """Return what the bundled configurations are: the second line of each file."""
    found = {}
    for path in sorted(config_folder().glob("*.yaml")):
        _, sentence, *_ = path.read_text(encoding="utf-8").splitlines()
        found[path.stem] = sentence.removeprefix("# ").partition(": test ")[0].removesuffix(".")
    return found


def _rows(summaries: dict[str, str]) -> list[str]:
    column = max(map(len, summaries)) + 4
    lines = []
    for name, summary in summaries.items():
        first, *rest = textwrap.wrap(summary, _WIDTH - column, break_on_hyphens=False) or [""]
        lines.append(f"  {name:<{column - 2}}{first}".rstrip())
        lines += [" " * column + line for line in rest]
    return lines
