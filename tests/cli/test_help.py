"""The short help and the completion: what they offer exists, and they answer at once."""

import json
import os
import re
import select
import shutil
import signal
import subprocess
import sys
import time

import docstring_parser
import pytest
from jsonargparse import ArgumentParser

import vae_lightning
from vae_lightning.__main__ import COMMANDS, main
from vae_lightning.cli import class_list, collect_options, completion, option_list, short_help
from vae_lightning.cli.allowed_classes import OPTION_BASES, subclasses
from vae_lightning.cli.bundled_configs import find_config

LIGHTNING = option_list.LIGHTNING_COMMANDS


def test_the_list_of_options_is_that_of_the_parsers():
    """If it is not: ``python -m vae_lightning.cli.collect_options`` writes it again."""
    kept, found = option_list.read(), json.loads(json.dumps(collect_options.collect()))
    assert kept["arguments"] == found["arguments"]
    for flag in ("--model", "--data", "--model.prior", "--model.encoder"):
        assert kept["classes"][flag] == found["classes"][flag]
    assert kept["summaries"] == found["summaries"]
    assert kept["options"].keys() == found["options"].keys()
    for command, options in kept["options"].items():
        # Those of the trainer differ between versions of Lightning.
        ours = {flag: entry for flag, entry in options.items() if "--trainer" not in flag}
        now = found["options"][command]
        assert ours == {f: e for f, e in now.items() if "--trainer" not in f}, command


@pytest.mark.parametrize("name", option_list.read()["classes"]["--model"])
def test_the_parser_finds_what_a_model_takes_from_the_data(name):
    parser = ArgumentParser()
    parser.add_class_arguments(getattr(vae_lightning, name), "model")
    found = parser.get_defaults().model
    assert (found.image_shape, found.num_classes, found.bounded) == ((1, 28, 28), 0, True)


def test_an_argument_is_described_once():
    """In the help, an attribute of the same name would replace it."""
    for cls in {cls for base in OPTION_BASES for cls in subclasses(base)}:
        if cls.__module__.startswith("vae_lightning."):
            names = [part.arg_name for part in docstring_parser.parse(cls.__doc__ or "").params]
            assert len(names) == len(set(names)), (cls, names)


@pytest.mark.parametrize("command", LIGHTNING)
def test_the_short_help(command, capsys):
    main([command, "--help"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"usage: vae {command} [options]"
    assert len(lines) < 200
    assert max(map(len, lines)) <= 95
    assert "list every option" in lines[-1] or "list every option" in lines[-2]
    flags = {line.split()[0] for line in lines if line.startswith("  --")}
    known = option_list.read()["options"][command]
    for flag in flags - {"--help", "--model.help"}:
        assert flag.removesuffix("+") in known, flag
    assert ("--init_from" in flags) == (command == "fit")
    assert ("--metrics.frechet" in flags) == (command in ("test", "validate"))


def test_every_flag_of_the_short_help_is_an_option_of_some_command():
    known = {flag for name in LIGHTNING for flag in option_list.read()["options"][name]}
    for texts in short_help._GROUPS.values():
        assert {flag.removesuffix("+") for flag in texts} <= known


def test_the_whole_help_is_behind_an_argument(capsys):
    with pytest.raises(SystemExit, match="0"):
        main(["predict", "--help", "all"])
    out = capsys.readouterr().out
    assert "--trainer.reload_dataloaders_every_n_epochs" in out
    assert len(out.splitlines()) > 200


@pytest.mark.parametrize("flag", ["--model", "--data", "--model.prior", "--model.decoder"])
def test_classes_are_listed_with_a_sentence(flag, capsys):
    main(["fit", "--config", "vae", f"{flag}.help"])
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 80
    rows = dict(re.findall(r"^  (\S+) +(\S.*)$", out, re.MULTILINE))
    for name in option_list.read()["classes"][flag]:
        assert len(rows[name]) > 5, name
    for path in find_config("vae").parent.glob("*.yaml"):
        assert (path.stem in rows) == (flag == "--model")


def test_the_help_of_a_class_is_not_the_list():
    assert class_list.asked(["--model.help", "--config", "vae"]) == "--model"
    assert class_list.asked(["--model.prior.help"]) == "--model.prior"
    assert class_list.asked(["--model.help", "BetaVAE"]) is None
    assert class_list.asked(["--model", "BetaVAE", "--optimizer.help"]) is None


LIGHT = [["fit", "--help"], ["completion", "bash"], ["--help"], ["fit", "--model.help"]]


@pytest.mark.parametrize("args", LIGHT)
def test_answers_without_importing_torch(args):
    code = (
        "import sys; from vae_lightning.__main__ import main; main(sys.argv[1:])\n"
        "assert not {'torch', 'numpy', 'lightning'} & sys.modules.keys()"
    )
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", code, *args], check=True, capture_output=True)
    assert time.monotonic() - start < 5  # on a busy machine; 0.1 s else


@pytest.mark.parametrize("args", [["--help"], ["fit", "--model.help"], ["sample", "--help"]])
def test_a_reader_that_closes_the_pipe_ends_the_command_quietly(args):
    code = "from vae_lightning.__main__ import main; main()"
    with subprocess.Popen(
        [sys.executable, "-c", code, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() in (0, 1)  # argparse ignores it


WORDS = [
    (["fi"], {"fit", "figure"}),
    (["fit", "--model.bet"], {"--model.beta", "--model.beta_zero"}),
    (["fit", "--config", "vae_d"], {"vae_dynamic"}),
    (["fit", "--model", "Beta"], {"BetaTCVAE", "BetaVAE"}),
    (["test", "--metrics.log"], {"--metrics.log_likelihood"}),
    (["sample", "--te"], {"--temperature"}),
    (["figure", "trav"], {"traversals"}),
    (["density", "fi"], {"fit"}),
    (["fit", "--ckpt_path", "las"], {"last.ckpt"}),
    (["encode", "--picture", "t"], {"tsne"}),
]


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "last.ckpt").touch()
    return tmp_path


def offered(shell, lines, folder, tmp_path_factory):
    """What a shell offers for a command line, by a script of its own."""
    path = tmp_path_factory.mktemp("script") / "complete"
    if shell == "fish":
        path.write_text(completion.fish(), encoding="utf-8")
        text = " ".join(["vae", *lines])
        script = f"source {path}; complete -C '{text}'"
        done = subprocess.run(
            ["fish", "-c", script], cwd=folder, capture_output=True, text=True, check=True
        )
        return {line.split("\t")[0] for line in done.stdout.splitlines()}
    words = " ".join(f"'{word}'" for word in ["vae", *lines])
    path.write_text(completion.bash(), encoding="utf-8")
    script = (
        f"source {path}; COMP_WORDS=({words}); COMP_CWORD={len(lines)}; COMPREPLY=(); _vae; "
        'printf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        [shell, "-c", script], cwd=folder, capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize("shell", ["bash", "fish"])
@pytest.mark.parametrize(("words", "expected"), WORDS, ids=lambda x: "_".join(sorted(x)))
def test_shells_complete(shell, words, expected, folder, tmp_path_factory):
    if shutil.which(shell) is None:
        pytest.skip(f"needs {shell}")
    assert offered(shell, words, folder, tmp_path_factory) == expected


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_equals_signs_separate_words_in_bash(folder, tmp_path_factory):
    found = offered("bash", ["fit", "--model", "=", "CV"], folder, tmp_path_factory)
    assert found == {"CVAE"}
    assert "VAE" in offered("bash", ["fit", "--model", "="], folder, tmp_path_factory)


@pytest.mark.skipif(shutil.which("zsh") is None, reason="needs zsh")
def test_a_tab_in_zsh(tmp_path):
    import pty

    (tmp_path / "vae.zsh").write_text(completion.bash(zsh=True), encoding="utf-8")
    process, terminal = pty.fork()
    if process == 0:
        os.chdir(tmp_path)
        os.execvp("zsh", ["zsh", "-f"])
    try:
        os.write(terminal, b"autoload -U compinit; compinit -u; source ./vae.zsh; echo be''gin\n")
        wait_for(terminal, "begin")
        os.write(terminal, b"vae fit --config vae_dyn\t")
        wait_for(terminal, "vae_dynamic")
        os.write(terminal, b" --model.bet\t")
        wait_for(terminal, "--model.beta")
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        os.close(terminal)


def wait_for(terminal, text, seconds=20):
    """Read from a terminal until a text appears."""
    seen, end = "", time.monotonic() + seconds
    while text not in seen:
        assert time.monotonic() < end, seen
        if select.select([terminal], [], [], 0.1)[0]:
            seen += os.read(terminal, 4096).decode(errors="replace")


def test_every_command_and_name_is_offered():
    for command in COMMANDS:
        assert f"{command}) words=" in completion.bash()
        assert f"-a {command} -d" in completion.fish()
    for name in completion.values_of("fit")["--config"]:
        assert find_config(name)


@pytest.mark.parametrize("args", [[], ["tcsh"], ["bash", "zsh"]])
def test_other_shells(args, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["completion", *args])
    assert "give bash, zsh, fish" in capsys.readouterr().err
    main(["completion", "--help"])
    assert "vae completion bash >" in capsys.readouterr().out
