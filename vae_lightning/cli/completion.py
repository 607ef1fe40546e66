"""``vae completion``: scripts that complete commands, options and names in a shell."""

from collections.abc import Sequence

from vae_lightning.cli import exit_codes, option_list
from vae_lightning.cli.bundled_configs import config_folder
from vae_lightning.cli.commands import COMMANDS
from vae_lightning.errors import fail

_SHELLS = {
    "bash": "vae completion bash > ~/.local/share/bash-completion/completions/vae",
    "zsh": "echo 'eval \"$(vae completion zsh)\"' >> ~/.zshrc",
    "fish": "vae completion fish > ~/.config/fish/completions/vae.fish",
}

_HELP = f"""\
usage: vae completion {{{",".join(_SHELLS)}}}

Print a script that completes commands, options, and names of configurations, models and data.

to install it, for new shells:
{chr(10).join(f"  {line}" for line in _SHELLS.values())}
"""

_BASH = """\
_vae() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD-1]}
    local command=${COMP_WORDS[1]} words=""
    # "=" is a word of its own: --model = VAE
    if [[ $current == "=" ]]; then
        current=""
    elif [[ $previous == "=" ]]; then
        previous=${COMP_WORDS[COMP_CWORD-2]}
    fi
    if [[ $COMP_CWORD -eq 1 ]]; then
        words="@COMMANDS@"
    elif [[ $current == -* ]]; then
        case $command in
@OPTIONS@
        esac
    else
        case $command:$previous in
@VALUES@
        esac
        COMPREPLY=($(compgen -W "$words" -- "$current") $(compgen -f -- "$current"))
        return
    fi
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
complete -o filenames -F _vae vae
"""


def run(args: Sequence[str]) -> None:
    """Print the script of a shell.

    Raises:
        SystemExit: If there is no such shell.
    """
    if any(argument in ("-h", "--help") for argument in args):
        print(_HELP)
        return
    if len(args) != 1 or args[0] not in _SHELLS:
        given = f"no shell '{' '.join(args)}'" if args else "which shell?"
        fail(f"{given}: give {', '.join(_SHELLS)}", exit_codes.WRONG_USAGE)
    print(fish() if args[0] == "fish" else bash(args[0] == "zsh"))


def options_of(command: str) -> list[str]:
    """Return the flags of a command that are completed."""
    content = option_list.read()
    flags = list(content["options"].get(command, {}))
    if command in option_list.LIGHTNING_COMMANDS:
        flags += [*content["arguments"], "--model.help", "--data.help"]
    return sorted({flag for flag in flags if flag.startswith("--")} | {"--help"})


def values_of(command: str) -> dict[str, list[str]]:
    """Return the values that are completed after a flag."""
    content = option_list.read()
    entries = content["options"].get(command, {})
    found = {flag: list(entry["choices"]) for flag, entry in entries.items() if "choices" in entry}
    if command in option_list.LIGHTNING_COMMANDS:
        found |= content["classes"]
        found["--config"] = found["-c"] = sorted(
            path.stem for path in config_folder().glob("*.yaml")
        )
        found["--help"] = ["all"]
        found["--model.help"], found["--data.help"] = found["--model"], found["--data"]
    if option_list.POSITIONAL in found:
        found[command] = found.pop(option_list.POSITIONAL)  # it follows the command
    if command == "sweep":
        found[command] = sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml"))
    if command == "completion":
        found[command] = list(_SHELLS)
    return {flag: [str(value) for value in values] for flag, values in found.items()}


def bash(zsh: bool = False) -> str:
    """Return the script for bash, or for zsh, which can read it."""
    commands = _commands()
    options = [f'            {name}) words="{" ".join(options_of(name))}" ;;' for name in commands]
    values = [
        f'            {name}:{flag}) words="{" ".join(words)}" ;;'
        for name in commands
        for flag, words in values_of(name).items()
    ]
    script = _BASH.replace("@COMMANDS@", " ".join(commands))
    script = script.replace("@OPTIONS@", "\n".join(options)).replace("@VALUES@", "\n".join(values))
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if zsh else script


def fish() -> str:
    """Return the script for fish."""
    entries = option_list.read()["options"]
    lines = ["complete -c vae -e"]
    for name, text in COMMANDS.items():
        lines.append(f"complete -c vae -f -n __fish_use_subcommand -a {name} -d {_quoted(text)}")
        values = values_of(name)
        if name in values:
            names = _quoted(" ".join(values[name]))
            lines.append(f"complete -c vae -n '__fish_seen_subcommand_from {name}' -a {names}")
        for flag in options_of(name):
            text = entries.get(name, {}).get(flag, {}).get("help", "")
            line = (
                f"complete -c vae -n '__fish_seen_subcommand_from {name}' "
                f"-l {flag.removeprefix('--')} -d {_quoted(text[:60])}"
            )
            if flag in values:
                line += f" -r -a {_quoted(' '.join(values[flag]))}"
            lines.append(line)
    return "\n".join(lines)


def _commands() -> list[str]:
    return list(COMMANDS)


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
