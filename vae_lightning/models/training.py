"""How a model is trained by Lightning: one update for each batch, or several in one call."""

from __future__ import annotations

import math
import warnings
from abc import abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any, cast

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import (
    Checkpoint,
    GradientAccumulationScheduler,
    ModelCheckpoint,
    ProgressBar,
    StochasticWeightAveraging,
    Timer,
    WeightAveraging,
)
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from lightning.pytorch.strategies import (
    DDPStrategy,
    FSDPStrategy,
    ModelParallelStrategy,
    SingleDeviceStrategy,
)
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torch.nn import Parameter
from torch.optim import LBFGS, Adam, Optimizer

from vae_lightning import randomness
from vae_lightning.checkpoint import class_of, is_inside_epoch
from vae_lightning.distributed import gather, keep_whole, mean
from vae_lightning.errors import NonFinite, UserError
from vae_lightning.loggers import MetricsLog
from vae_lightning.models.finite import MOST_IN_A_ROW, FiniteWatch, Undo
from vae_lightning.randomness import Noise

_PIXELS_PER_CALL = 2048 * 28 * 28
"""Where `updates_per_call` is chosen: as many batches as have so many decoded pixels."""

_MOST_UPDATES_PER_CALL = 64

_BATCH_HOOKS = ("on_train_batch_start", "on_train_batch_end", "on_before_zero_grad")
_HOOKS_OF_MODELS = (
    *_BATCH_HOOKS,
    "training_step",
    "configure_optimizers",
    "optimizer_step",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
    "lr_scheduler_step",
)
"""What a model may override to treat single batches in a way of its own."""

_ACT_ON_UPDATES = GradientAccumulationScheduler, StochasticWeightAveraging, WeightAveraging


class Training(pl.LightningModule):
    """Steps, logging, optimiser and learning-rate schedule of a training.

    Lightning's loop takes one or two milliseconds for every batch, more than a small network needs
    for its update. With several updates in a call of `training_step`, the data module of this
    project yields that many batches as one, and the loop takes its time once for all of them. The
    updates are the same: same images, same order, same noise, and the same steps in the log.

    Attributes:
        make_optimizer: Makes the optimiser.
        make_lr_scheduler: Makes the learning-rate scheduler, if there is to be one.
        updates_per_call: Updates in one call as asked for; None: as many as the training allows.
        updates: Updates in one call as chosen.
        step: Batches trained on before this one, over all epochs. Not ``global_step``, which counts
            the steps of the optimiser.
        noise_seed: Of the noise in training.
        skip_non_finite: Whether updates that are not finite are left out.
        written_step: The last step that was written to the log.
        began: Whether the training has come to its first batch, with all restored.
    """

    make_optimizer: OptimizerCallable
    make_lr_scheduler: LRSchedulerCallable | None
    updates_per_call: int | None
    noise_seed: int
    skip_non_finite: bool
    updates: int = 1
    step: int = 0
    began: bool = False
    _optimizer_steps: int | None = None
    written_step: int = -1
    _batch: tuple[int, int] | None = None

    def __init__(self) -> None:
        super().__init__()
        self._watch, self._undo = FiniteWatch(), Undo(self)
        self._random_states: list[list[Tensor]] = []
        self._log_rows = 0
        self._noise_ahead: dict[int, Noise] = {}

    @abstractmethod
    def per_image(self, batch: Any, stage: str, step: int, seed: int) -> dict[str, Tensor]:
        """The objective (``loss``) and its terms by name, one value per image, each (B,)."""

    def setup(self, stage: str) -> None:
        """Choose how many updates a call of `training_step` does."""
        strategy = self.trainer.strategy
        if isinstance(strategy, ModelParallelStrategy):
            raise ValueError("ModelParallelStrategy is not supported: use --trainer.strategy fsdp")
        if isinstance(strategy, FSDPStrategy):
            keep_whole(strategy, self.unsharded_parameters())
        if stage == "fit":
            if self.trainer.global_step == 0:
                self.step = 0  # a checkpoint that is resumed is read later
            self._optimizer_steps = self._batch = None
            self.began = False
            self._noise_ahead = {}
            self._watch, self._undo = FiniteWatch(), Undo(self)
            self.written_step = -1
            self._set_updates(self._choose_updates())

    def unsharded_parameters(self) -> list[Parameter]:
        """Parameters that FSDP must leave whole: single numbers, which it refuses to cut."""
        return [parameter for parameter in self.parameters() if parameter.ndim == 0]

    def teardown(self, stage: str) -> None:
        """Leave the model as Lightning expects one before a training: with one batch at a time."""
        if stage == "fit":
            self._count_optimizer_steps(self.trainer.global_step)
            self._set_updates(1)

    def _set_updates(self, updates: int) -> None:
        self.updates = updates
        self.automatic_optimization = updates == 1
        if updates > 1:
            # Lightning counts calls when it compares the batches with log_every_n_steps.
            warnings.filterwarnings("ignore", ".*is smaller than the logging interval.*")

    def _choose_updates(self) -> int:
        trainer: Any = self.trainer
        reason = _needs_single_batches(trainer, self)
        if self.updates_per_call is not None:
            if self.updates_per_call > 1 and reason:
                raise ValueError(
                    f"model.updates_per_call is {self.updates_per_call}, but {reason}: "
                    "leave out one of the two"
                )
            return self.updates_per_call
        if reason or any(_sees_batches(callback) for callback in trainer.callbacks):
            return 1
        data = trainer.datamodule
        pixels = data.batch_size * math.prod(data.image_shape) * getattr(self, "samples", 1)
        return min(max(1, _PIXELS_PER_CALL // pixels), _MOST_UPDATES_PER_CALL)

    def on_train_start(self) -> None:
        """Go on counting where a checkpoint ended, however many updates its calls had."""
        if self._optimizer_steps is not None:
            check_states(self.trainer.optimizers)
            self._count_optimizer_steps(self._optimizer_steps)
            self._optimizer_steps = None
        if self._random_states and len(self._random_states) == self.trainer.world_size:
            randomness.restore(self._random_states[self.global_rank], self.device)
        self._random_states = []
        self.began = True

    def _count_optimizer_steps(self, steps: int) -> None:
        """Lightning has a counter for each way of training, of which it reads one."""
        loop = self.trainer.fit_loop.epoch_loop
        loop.manual_optimization.optim_step_progress.total.completed = steps
        loop.automatic_optimization.optim_progress.optimizer.step.total.completed = steps

    def noise_of(self, indices: Tensor, stage: str, step: int, seed: int) -> Noise:
        """The noise of a batch with these images, (B,)."""
        if stage != "train":  # must not depend on the batch that an image happens to be in
            return Noise(indices, seed, stage, 0)
        ahead = self._noise_ahead.pop(step, None)
        if ahead is not None and seed == self.noise_seed and _same(ahead.index, indices):
            return ahead
        return Noise(indices, seed, stage, step)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor | None:
        """Train on a batch, or on several that come as one."""
        if self.automatic_optimization:
            this = self.trainer.current_epoch, batch_idx
            if this == self._batch:  # an optimizer that evaluates a batch several times
                self.step -= 1
            self._batch = this
            return self._loss(batch)
        optimizer = cast(LightningOptimizer, self.optimizers())
        size = self.trainer.datamodule.batch_size  # type: ignore[attr-defined]
        parts = list(batch.split(size))
        steps = range(self.step, self.step + len(parts))
        keys = [(self.noise_seed, "train", step) for step in steps]
        ahead = randomness.NoiseAhead(batch.indices, size, keys)
        self._noise_ahead = {step: ahead.part(i) for i, step in enumerate(steps)}
        for part in parts:
            loss = self._loss(part)
            # As in Lightning's own loop, where autocast ends with the forward pass.
            with torch.autocast(self.device.type, enabled=False):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
        # The axis of the log counts updates; Lightning adds the last one itself.
        self.trainer.fit_loop.epoch_loop._batches_that_stepped += len(parts) - 1
        if self.trainer.is_last_batch:
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()  # type: ignore[call-arg]
        return None

    def _loss(self, batch: Any) -> Tensor:
        """The mean objective of one batch; its terms are logged on the steps that are written."""
        if self.skip_non_finite:
            self._undo.remember()
        per_image = self.per_image(batch, "train", self.step, self.noise_seed)
        # The one place where a mean over a batch is taken.
        loss = per_image["loss"].mean()
        if self.skip_non_finite:
            self._undo.look(loss)
        else:
            terms = {name: value for name, value in per_image.items() if name != "loss"}
            self._watch.look(self.step, loss, terms)
        self.step += 1
        step = self.trainer.global_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if every and (step + 1) % every == 0 and step != self.written_step:
            self.written_step = step  # once, where several batches are accumulated
            # Each key costs about as much as the training loop around it, so not at every step.
            names = [f"train/{name}" for name in per_image]
            values = mean(torch.stack([value.detach().mean() for value in per_image.values()]))
            means = dict(zip(names, values, strict=True))
            for name, value in means.items():
                self.log(name, value, prog_bar=name == "train/loss", logger=False)
            numbers = {name: value.item() for name, value in means.items()}
            self._watch.find()
            if self.skip_non_finite:
                numbers["train/skipped"] = self._undo.skipped
            for logger in self.trainer.loggers:
                logger.log_metrics({"epoch": self.trainer.current_epoch, **numbers}, step)
        return loss

    def on_validation_end(self) -> None:
        """Let schedulers that follow a metric step after this epoch too, if it was continued.

        Lightning thinks that the metric is not known then.
        """
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            self.trainer.fit_loop.restarting = False

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Leave out an update that is not finite, if asked for."""
        if self.skip_non_finite:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            self._undo.leave_out(parameters, scaled=scaler is not None)
            if self._undo.in_a_row == MOST_IN_A_ROW:
                raise NonFinite(f"each of the last {MOST_IN_A_ROW} losses or gradients", self.step)

    @property
    def skipped(self) -> int:
        """Updates left out because they were not finite."""
        return self._undo.skipped

    def check_optimizer(self) -> None:
        """Make optimiser and scheduler once, so that wrong arguments are refused at once.

        Raises:
            ValueError: If one of them refuses its arguments.
        """
        try:
            optimizer = self.make_optimizer([nn.Parameter(torch.zeros(1, 1))])
        except ValueError as error:
            raise ValueError(f"model.optimizer: {error}") from error
        if self.make_lr_scheduler is not None:
            try:
                self.make_lr_scheduler(optimizer)
            except (ValueError, ZeroDivisionError) as error:
                raise ValueError(f"model.lr_scheduler: {error}") from error

    def configure_optimizers(self) -> Any:
        """The optimiser over all trainable parameters and, if there is one, the scheduler."""
        optimizer = self.make_optimizer([p for p in self.parameters() if p.requires_grad])
        if isinstance(optimizer, Adam):  # and AdamW
            _fuse(optimizer)
        if self.make_lr_scheduler is None:
            return optimizer
        scheduler = self.make_lr_scheduler(optimizer)
        if isinstance(scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": scheduler, "monitor": scheduler.monitor},
            }
        return [optimizer], [scheduler]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the seed of the noise and the step, so that a resumed run goes on with them.

        Nothing here draws from torch's own generators, but networks of others may: dropout does.

        Raises:
            NonFinite: If the loss or the weights have become NaN or infinite: the checkpoint of
                before is worth more.
        """
        self._watch.find()
        weights = [p.detach() for p in self.parameters() if p.is_floating_point()]
        if not all(gather(bool(nn.utils.get_total_norm(weights).isfinite()))):
            raise NonFinite("the weights", self.step - 1)
        checkpoint["skipped"] = self._undo.skipped
        checkpoint["noise_seed"] = self.noise_seed
        checkpoint["step"] = self.step
        checkpoint["updates"] = self.updates
        checkpoint["random_states"] = gather(randomness.state(self.device))
        checkpoint["log_rows"] = _rows_written(self.trainer.loggers, self._log_rows)

    def _check_processes(self, checkpoint: dict[str, Any]) -> None:
        """Check that a training goes on inside an epoch with as many processes as it began it."""
        held = len(self._random_states) or self.trainer.world_size
        if is_inside_epoch(checkpoint) and held != self.trainer.world_size:
            raise UserError(
                f"this training stopped inside an epoch, which it began with {held} processes: "
                f"continue it with as many, not with {self.trainer.world_size}"
            )

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take the seed of the noise and the step from a checkpoint.

        Lightning's progress in an epoch is in calls, so a call keeps the number of updates that it
        had, unless single batches are needed, whose number is known.
        """
        self.noise_seed = checkpoint.get("noise_seed", self.noise_seed)
        self._optimizer_steps = checkpoint["global_step"]
        self.step = checkpoint.get("step", self._optimizer_steps)
        if self._trainer is None or self.trainer.state.fn != "fit":
            return
        self._undo.skipped = checkpoint.get("skipped", 0)
        self._random_states = checkpoint.get("random_states", [])
        self._log_rows = checkpoint.get("log_rows", 0)
        self._check_processes(checkpoint)
        held = checkpoint.get("updates", 1)
        if held > 1 and self.updates == 1:
            loader = self.trainer.datamodule.train_dataloader()  # type: ignore[attr-defined]
            progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
            for part, most in ("current", len(loader)), ("total", self.step):
                calls = progress[part]["ready"]
                batches = min(calls * held, most)
                progress[part] = {k: batches - (calls - v) for k, v in progress[part].items()}
        else:
            self._set_updates(held)


def _same(x: Tensor, y: Tensor) -> bool:
    """Whether two tensors are the same numbers in memory; a GPU need not be waited for."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape


def _rows_written(loggers: Iterable[Logger], before: int) -> int:
    """Rows of the log of the run, which are on the disk before the checkpoint is.

    Args:
        loggers: Those of the training.
        before: Rows of the training that is continued, where this one logs nothing.
    """
    for logger in loggers:
        if isinstance(logger, MetricsLog):
            logger.save()
            return logger.rows
    return before


def _fuse(optimizer: Adam) -> None:
    """Let one kernel do all of an update, three times as fast on a CPU, unless asked otherwise.

    Not by the argument ``fused`` of Adam: with it the kernel would also undo the scaling of
    16-bit gradients, which Lightning 2.6 cannot clip then (Lightning-AI/pytorch-lightning#21436).
    """
    for group in optimizer.param_groups:
        chosen = group["foreach"] or group["capturable"] or group["differentiable"]
        devices = {parameter.device.type for parameter in group["params"]}
        if group["fused"] is None and not chosen and devices <= {"cpu", "cuda"}:
            group["fused"] = True


def check_states(optimizers: Sequence[Optimizer]) -> None:
    """Check what a checkpoint says of Adam: its kernel reads beyond the end of what is too short.

    Raises:
        UserError: If it does not fit the weights.
    """
    for optimizer in optimizers:
        for parameter, state in optimizer.state.items() if isinstance(optimizer, Adam) else ():
            sizes = {
                "step": torch.Size(),
                "exp_avg": parameter.shape,
                "exp_avg_sq": parameter.shape,
            }
            if any(getattr(state.get(name), "shape", None) != s for name, s in sizes.items()):
                raise UserError(
                    "the state of the optimizer in the checkpoint does not fit the weights: the "
                    "file is damaged, use another one from the same folder"
                )


def _needs_single_batches(trainer: Any, model: Training) -> str:
    """What of a training counts or treats single batches, as a clause; empty if nothing does."""
    callbacks = trainer.callbacks
    scheduler = class_of(model.make_lr_scheduler)
    optimizer = class_of(model.make_optimizer)
    overridden = [name for name in _HOOKS_OF_MODELS if is_overridden(name, model, Training)]
    scheduling = [c for c in callbacks if isinstance(c, _ACT_ON_UPDATES)]
    reasons = {
        f"{type(model).__name__} overrides {', '.join(overridden)}": overridden,
        f"{', '.join(type(c).__name__ for c in scheduling)} acts on single updates": scheduling,
        "the data module yields batches of one size only": not hasattr(
            trainer.datamodule, "updates"
        ),
        "trainer.gradient_clip_val clips the gradient of each update": trainer.gradient_clip_val,
        "trainer.accumulate_grad_batches joins batches": trainer.accumulate_grad_batches > 1,
        "trainer.limit_train_batches counts batches": not _is_all(trainer.limit_train_batches),
        # Absent where it is a time.
        "trainer.val_check_interval counts batches": not _is_all(
            getattr(trainer, "val_check_interval", 1.0)
        ),
        "trainer.max_steps counts batches": trainer.max_steps != -1,
        "checkpoint.every_n_train_steps counts them": any(
            c._every_n_train_steps for c in callbacks if isinstance(c, ModelCheckpoint)
        ),
        "model.lr_scheduler follows a validation loss": scheduler is not None
        and issubclass(scheduler, ReduceLROnPlateau),
        "model.optimizer evaluates a batch several times": optimizer is not None
        and issubclass(optimizer, LBFGS),
        f"{type(trainer.strategy).__name__} trains on one batch at a time": not isinstance(
            trainer.strategy, SingleDeviceStrategy | DDPStrategy
        ),
    }
    return next((reason for reason, holds in reasons.items() if holds), "")


def _sees_batches(callback: pl.Callback) -> bool:
    """Whether a callback, other than those known not to mind, is called for each batch."""
    return not isinstance(callback, ProgressBar | Timer | Checkpoint) and any(
        is_overridden(hook, callback, pl.Callback) for hook in _BATCH_HOOKS
    )


def _is_all(limit: float) -> bool:
    """Whether a limit of Lightning's, a share (1.0) or a number (1) of batches, means all."""
    return isinstance(limit, float) and limit == 1.0
