"""Hook of MkDocs that writes a card for each bundled configuration into configurations.md."""

import ast
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[1]
MARK = "<!-- cards -->"


def on_page_markdown(markdown: str, **kwargs: Any) -> str:
    """Replace the mark on a page by the cards."""
    return markdown.replace(MARK, cards()) if MARK in markdown else markdown


def cards() -> str:
    """Return the cards of all bundled configurations as Markdown."""
    return "\n\n".join(card(path) for path in sorted((ROOT / "configs").glob("*.yaml")))


def card(path: Path) -> str:
    """Return what a configuration trains, on what, how, and how to repeat it."""
    text = path.read_text(encoding="utf-8")
    comments = [line.lstrip("# ") for line in text.splitlines() if line.startswith("#")]
    content = yaml.safe_load(text) or {}
    trainer = content.get("trainer", {})
    limits = {"max_epochs": "epochs", "max_steps": "steps"}
    length = [f"{trainer[key]} {unit}" for key, unit in limits.items() if key in trainer]
    rows = {
        "model": _described(content.get("model", "VAE")),
        "data": _described(content.get("data", "Digits")),
        "optimizer": _described(content.get("optimizer", "Adam")),
        "training": ", ".join([*length, f"batches of {_batch_size(content)}"]),
    }
    if "lr_scheduler" in content:
        rows["schedule"] = _described(content["lr_scheduler"])
    lines = [f"## {path.stem}", "", " ".join(comments[1:]), "", "| part | setting |", "|---|---|"]
    lines += [f"| {name} | {value} |" for name, value in rows.items()]
    return "\n".join([*lines, "", "```console", f"$ {comments[0]}", "```"])


def _described(chosen: str | dict[str, Any]) -> str:
    """Return a class and its arguments in a line."""
    if isinstance(chosen, str):
        return f"`{chosen}`"
    arguments = []
    for name, value in chosen.get("init_args", {}).items():
        shown = _described(value) if isinstance(value, dict) else f"{value}"
        arguments.append(f"{name} {shown}")
    return f"`{chosen['class_path']}`" + (f" ({', '.join(arguments)})" if arguments else "")


def _batch_size(content: dict[str, Any]) -> int:
    """Return the batch size of a configuration, or the default of the data modules."""
    data = content.get("data", {})
    chosen = data.get("init_args", {}).get("batch_size") if isinstance(data, dict) else None
    return chosen or _default_batch_size()


@cache
def _default_batch_size() -> int:
    """Return the default of the data modules, without importing them and torch."""
    tree = ast.parse((ROOT / "vae_lightning" / "data" / "base.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef) and node.name == "__init__":
            names = [argument.arg for argument in node.args.args]
            if "batch_size" in names:
                found = node.args.defaults[names.index("batch_size") - len(names)]
                assert isinstance(found, ast.Constant)
                return int(str(found.value))
    raise ValueError("no data module has a batch_size")
