"""A training from its first line on the screen to its last, however it ends."""

import contextlib
import math
import shlex
import sys
import time
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any, NoReturn

import lightning.pytorch as pl
from lightning.pytorch.accelerators import CPUAccelerator

from vae_lightning.cli import allowed_classes, report, run_folders, run_notes
from vae_lightning.cli.advice import advice
from vae_lightning.cli.run_folders import RunFolder, short
from vae_lightning.data import ImageData
from vae_lightning.errors import NonFinite, UserError, writing
from vae_lightning.figures import history
from vae_lightning.files import atomic_write_text
from vae_lightning.models.capabilities import Capability
from vae_lightning.settings import Configurable, class_path
from vae_lightning.training import compat, cpu, ending, slurm
from vae_lightning.training.best_checkpoint import BestCheckpoint
from vae_lightning.training.checkpoint_io import check_disk_space
from vae_lightning.training.last_checkpoint import Interrupted, LastCheckpoint
from vae_lightning.training.module import LitVAE
from vae_lightning.training.signals import LISTENER, REQUEUE

_RISE = 0.1
"""Rise of the validation loss since its minimum, relative to it, above which a note is printed."""

_SINCE = 3
"""Number of validations since the minimum that the note needs."""

_FEW_CODES = 0.1
"""Share of the codes in use below which a note is printed."""

_USES = 3
"""Number of positions for each code that the note needs."""


class TrainingRun:
    """Train in a run's folder, and say what there is at the end and what to type next.

    Args:
        trainer: The trainer.
        module: What it trains.
        folder: Folder of the run.
    """

    def __init__(self, trainer: pl.Trainer, module: LitVAE, folder: RunFolder) -> None:
        self.trainer = trainer
        self.module = module
        self.folder = folder
        self.last = run_folders.last_checkpoint(folder.path)

    def run(self, step: int | None, **kwargs: Any) -> None:
        """Train.

        Args:
            step: Step of the checkpoint that is continued, if there is one.
            **kwargs: See `lightning.pytorch.Trainer.fit`.

        Raises:
            UserError: If the training fails for a reason that the user can fix.
            SystemExit: If it is stopped by a signal.
        """
        started = time.monotonic()
        self._announce(step, kwargs.get("datamodule"))
        cpu.tune_process()
        try:
            with self._locked_folder(), self._attributed_to(kwargs.get("ckpt_path")):
                self.trainer.fit(**kwargs)
        except Interrupted as stop:
            self._stop(stop)
        except NonFinite as error:
            self._refuse_non_finite(error)
        except SystemExit:  # before the first batch, or Ctrl-C for the second time
            if not self.trainer.interrupted:
                raise
            self._exit("interrupted", 143 if self.trainer.received_sigterm else 130)
        finally:
            LISTENER.stop()
        self._summarize(time.monotonic() - started)

    def _announce(self, step: int | None, data: object) -> None:
        if not self.trainer.is_global_zero:
            return
        parameters = self.module.model.parameters()
        size = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
        name = type(self.module.model).__name__
        begun = "Training" if step is None else f"Continuing from step {step}:"
        where = f"everything goes to {self.folder.path}"
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            where = "nothing is written, because of --trainer.fast_dev_run"
        print(f"{begun} {name}, {size:,} parameters; {where}")
        half = str(self.trainer.precision).startswith("bf16")
        if half and isinstance(self.trainer.accelerator, CPUAccelerator) and cpu.lacks_bfloat16():
            print(
                "Note: this CPU has no instructions for bfloat16, so this training is slower than "
                "one with --trainer.precision 32-true"
            )
        load = cpu.load_of_others()
        if load is not None and isinstance(self.trainer.accelerator, CPUAccelerator):
            print(
                f"Note: other programs keep this machine busy (load {load:.1f}), where several "
                "threads wait for each other: OMP_NUM_THREADS=1 vae fit may be five times as fast"
            )
        if isinstance(data, ImageData):
            print(f"Data: {type(data).__name__}, {data.summary()}{self._note_left_out(data)}")
            self._note_other_data(data)
            for sentence in advice(self.trainer, self.module, data, step is not None):
                print(f"Note: {sentence}")

    def _note_other_data(self, data: ImageData) -> None:
        """Say if the autoencoder of a prior was trained on other data."""
        trained_on = getattr(self.module.model, "trained_on", None)
        if trained_on is None:
            return
        now = {**data.describe(), "class_names": [str(name) for name in data.class_names or ()]}
        before, after = (_data_name(one) for one in (trained_on, now))
        if before != after:
            print(f"Note: the autoencoder was trained on {before}, not on {after}")

    def _note_left_out(self, data: ImageData) -> str:
        """List the files of a data set that are not used, and say where the list is."""
        if not data.left_out:
            return ""
        n = len(data.left_out)
        files = data.left_out_noun + "s" * (n != 1)
        if self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return f"; {n} {files} left out"
        path = self.folder.path / run_folders.LEFT_OUT
        lines = [f"{name}: {reason}\n" for name, reason in data.left_out]
        with writing(path):
            atomic_write_text(path, "".join(lines))
        return f"; {n} {files} left out (listed in {short(path)})"

    @contextlib.contextmanager
    def _locked_folder(self) -> Iterator[None]:
        """Check the folder, write its notes and lock it, in the first process."""
        if self.trainer.fast_dev_run or not self.trainer.is_global_zero:  # type: ignore[attr-defined]
            yield
            return
        path = self.folder.path
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        if any(isinstance(c, LastCheckpoint | BestCheckpoint) for c in callbacks):
            check_disk_space(path, self.module)
        if self.folder.notes:
            run_notes.add(path, **self.folder.notes)
        with run_folders.lock(path):
            yield

    @contextlib.contextmanager
    def _attributed_to(self, ckpt_path: str | None) -> Iterator[None]:
        """Attribute failures while a checkpoint is restored to the checkpoint."""
        try:
            yield
        except Exception as error:
            if ckpt_path is None or isinstance(error, UserError) or not compat.restores(error):
                raise
            message = " ".join(str(error).split())
            raise UserError(
                f"{ckpt_path} cannot be resumed ({type(error).__name__}: {message}): it does not "
                "fit these options or versions; leave out what you changed, or use another one"
            ) from error

    def _stop(self, stop: Interrupted) -> NoReturn:
        """End after a signal, whose checkpoint is saved."""
        if not self.trainer.is_global_zero:
            raise SystemExit(0) from None  # the first process speaks for all
        if stop.received == REQUEUE:
            step = f"step {self.module.step:,} ({short(stop.saved)})"
            # Before, because SLURM ends this process at once.
            print(f"Requeuing; job {slurm.job()} continues from {step}.", flush=True)
            slurm.requeue()
            raise SystemExit(slurm.REQUEUED) from None
        self._exit(f"stopped by {stop.received.name}", 128 + stop.received)

    def _refuse_non_finite(self, error: NonFinite) -> NoReturn:
        if not self.trainer.is_global_zero:  # all processes have found it
            raise SystemExit(1) from None
        advice = "no checkpoint yet: start again"
        if self.last.is_file():
            advice = f"the last good checkpoint is {short(self.last)}: continue from it"
        remedy = (
            "a smaller --optimizer.lr, or skip such updates with --training.skip_non_finite true"
        )
        if self.trainer.precision == "16-true":
            remedy = (
                "--trainer.precision 16-mixed or bf16-true: float16 rounds the eps of Adam to 0, "
                "which --optimizer.eps 1e-4 avoids, and overflows above 65,504"
            )
        raise UserError(f"{error}; {advice} with {remedy}") from error

    def _exit(self, why: str, code: int) -> NoReturn:
        """Print how to continue, and end the process."""
        if not self.trainer.is_global_zero:
            raise SystemExit(code)
        hint = self._command("fit", self.last) if self.last.is_file() else "no checkpoint yet"
        start = "\n" if sys.stderr.isatty() else ""  # below a progress bar
        epoch = self.trainer.current_epoch + 1
        print(f"{start}vae: {why} in epoch {epoch}; to continue: {hint}", file=sys.stderr)
        raise SystemExit(code)

    def _command(self, name: str, ckpt_path: Path) -> str:
        """Return a command for a checkpoint of the run, quoted for a shell."""
        words = ["vae", name]
        config = self.folder.path / "config.yaml"
        if config.is_file():
            for module in allowed_classes.foreign_modules(config.read_text(encoding="utf-8")):
                words += ["--import", module]
        words += ["--ckpt_path", short(ckpt_path)]
        data = self.trainer.datamodule  # type: ignore[attr-defined]
        if name != "fit" and data is not None and not isinstance(data, Configurable):
            words += ["--data", class_path(type(data))]  # the checkpoint does not say it
        return shlex.join(words)

    def _best(self) -> Path | None:
        """Return the best checkpoint, or the last one if nothing says what is better."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        paths = [
            Path(c.best_model_path).absolute() for c in callbacks if isinstance(c, BestCheckpoint)
        ]
        return next((path for path in [*paths, self.last] if path.is_file()), None)

    def _earlier_best(self) -> str:
        """Return a sentence if the validation loss has risen for long; empty if it has not."""
        callbacks = self.trainer.callbacks  # type: ignore[attr-defined]
        best = next((c for c in callbacks if isinstance(c, BestCheckpoint)), None)
        if self.module.model.critic is not None:  # whose losses do not measure quality
            return ""
        if best is None or best.monitor != "val/loss" or best.best_model_score is None:
            return ""
        _, values = history.read_losses(self.folder.path).get("val/loss", ((), (math.inf,)))
        since = len(values) - 1 - values.index(min(values))
        lowest = float(best.best_model_score)
        if since < _SINCE or not values[-1] - lowest > _RISE * abs(lowest):
            return ""
        return (
            f"best.ckpt has a validation loss of {lowest:.4f}, which has risen since: a shorter "
            "training, a smaller model or more data will do better"
        )

    def _unused_codes(self) -> str:
        """Return a sentence if few codes are used; empty if not, or for codes learned before."""
        model, results = self.module.model, self.module.results
        if model.has(Capability.CODE_PRIOR):
            return ""
        for name, size in model.codebook_sizes.items():
            prefix = f"val/{name}_" if name else "val/"
            used, bits = results.get(f"{prefix}codes_used"), results.get(f"{prefix}code_bits")
            images = results["val/loss"].images if "val/loss" in results else None
            if used is None or bits is None or not images:
                continue
            positions = images * bits.value / math.log2(size)
            if used.value < _FEW_CODES and positions > _USES * size:
                of_what = f" of codebook {name}" * bool(name)
                return (
                    f"only {round(used.value * size)} of {size} codes{of_what} are used: train "
                    "longer, or choose fewer codes"
                )
        return ""

    def _summarize(self, seconds: float) -> None:
        """Print the key numbers, where everything is, and what to type next."""
        if not self.trainer.is_global_zero or self.trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        with writing(self.folder.path / "figures"):
            history.draw_losses(self.folder.path)
            history.animate_samples(self.folder.path)
        took = timedelta(seconds=round(seconds))
        # Forked or spawned processes keep both the epoch and the results to themselves.
        to_epoch = f" to epoch {self.trainer.current_epoch}" if self.module.results else ""
        why = f": {ending.reason(self.trainer)}" if self.module.began else ""
        print(f"\nTrained{to_epoch} in {took}{why}.")
        if self.module.skipped:
            print(f"Skipped:     {self.module.skipped} updates that were not finite")
        if self.module.results:
            print("On the validation images:", *report.lines(self.module), sep="\n")
        print(f"Run folder:  {short(self.folder.path)}")
        for note in filter(None, (self._earlier_best(), self._unused_codes())):
            print(f"Note:        {note}")
        if best := self._best():
            inside = best.is_relative_to(folder := self.folder.path.absolute())
            run_notes.add(folder, best=str(best.relative_to(folder) if inside else best))
            print(f"Next:        {self._command('test', best)}")


def _data_name(described: dict[str, Any]) -> str:
    """Return what data are, in words: their class, folder, classes and binarization."""
    arguments = described["init_args"]
    text = str(described["class_path"].rpartition(".")[2])
    if text == "ImageFolder":
        text += f" {Path(arguments.get('root') or '').name}"
    if names := described["class_names"]:
        text += f" ({', '.join([*names[:5], *(['...'] if len(names) > 5 else [])])})"
    return f"{text}, binarization {arguments.get('binarization', 'none')}"
