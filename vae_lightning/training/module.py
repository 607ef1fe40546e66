"""The LightningModule that trains every model."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any, cast

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.loggers import Logger
from torch import Tensor, nn
from torch.optim import Optimizer

from vae_lightning import randomness
from vae_lightning.checkpoint import RECORD_KEY, TrainingRecord
from vae_lightning.distributed import from_first, gather, mean
from vae_lightning.errors import NonFinite, UserError
from vae_lightning.models.image_model import ImageModel
from vae_lightning.randomness import Noise
from vae_lightning.schedules import Scheduled, SeesBatches
from vae_lightning.settings import Configurable
from vae_lightning.training import compat, epoch_end, multi_step, optimizers, strategies
from vae_lightning.training.code_usage import CodeUsage
from vae_lightning.training.evaluation import EvaluationModule
from vae_lightning.training.metrics_log import MetricsLog
from vae_lightning.training.non_finite import MAX_SKIPPED_IN_A_ROW, NonFiniteDetector, UpdateGuard
from vae_lightning.training.training_images import DataModuleImages, await_features, fill_features


class LitVAE(EvaluationModule):
    """Train, validate and test a model: steps, logging, optimizers, schedules, resume.

    Args:
        model: The model.
        optimizer: Optimizer of the model's parameters.
        lr_scheduler: Learning-rate scheduler, stepped once per epoch, of all optimizers.
        critic_optimizer: Optimizer of the critic's parameters, for models that have a critic; by
            default like ``optimizer``.
        compile: Compile the networks with ``torch.compile`` before the first batch.
        steps_per_call: Optimizer steps in one call of ``training_step``, for each of which
            Lightning's loop takes its time. By default as many as small images allow, and 1 where
            an option of the trainer counts or treats single batches. The updates are the same
            either way; 1 hands each batch to Lightning and its callbacks.
        skip_non_finite: Skip an update whose loss or gradient is NaN or infinite, and count it,
            instead of ending the training. On a GPU, every step then waits for the one before.

    Attributes:
        step: Batches trained on before this one, over all epochs.
        noise_seed: Seed of the noise in training.
        began: Whether training has reached its first batch, with everything restored.
        run: The ``id`` and the ``folder`` of the run, for its checkpoints.

    Raises:
        ValueError: If an option is out of range, or an optimizer refuses its arguments.
        TypeError: If an optimizer or a scheduler cannot be stored in a checkpoint as plain data.

    Example:
        >>> from vae_lightning.models.vae import VAE
        >>> LitVAE(VAE(latent_dim=2)).model.latent_dim
        2
    """

    def __init__(
        self,
        model: ImageModel,
        optimizer: OptimizerCallable = torch.optim.Adam,
        lr_scheduler: LRSchedulerCallable | None = None,
        critic_optimizer: OptimizerCallable | None = None,
        compile: bool = False,
        steps_per_call: int | None = None,
        skip_non_finite: bool = False,
    ) -> None:
        super().__init__(model)
        if steps_per_call is not None and steps_per_call < 1:
            raise ValueError(f"steps_per_call must be at least 1, got {steps_per_call}")
        if critic_optimizer is not None and model.critic is None:
            raise ValueError(
                f"critic_optimizer has no effect on a {type(model).__name__}, which has no critic: "
                "leave it out"
            )
        if model.critic is not None and type(model).critic_objective is ImageModel.critic_objective:
            raise ValueError(
                f"{type(model).__name__} has a critic but no loss for it: define critic_objective"
            )
        self.make_optimizer = optimizer
        self.make_lr_scheduler = lr_scheduler
        self.make_critic_optimizer = critic_optimizer or optimizer
        makers = optimizer, critic_optimizer, lr_scheduler
        self.recipes = [None if make is None else optimizers.describe(make) for make in makers]
        optimizers.check_factories(*makers)
        self.compile_networks = compile
        self.asked_steps_per_call = steps_per_call
        self.steps_per_call = 1
        self.skip_non_finite = skip_non_finite
        self.noise_seed = torch.initial_seed()
        self.step = 0
        self.written_step = -1
        self.began = False
        self.ended_early: dict[str, Any] | None = None
        self.run: dict[str, str] | None = None
        self.warning_filters: warnings.catch_warnings[None] | None = None
        self._restored_steps: int | None = None
        self._batch: tuple[int, int] | None = None
        self._detector, self.guard = NonFiniteDetector(), UpdateGuard(self)
        self._random_states: list[list[Tensor]] = []
        self.log_rows, self.awaits_features = 0, False
        self._noise_of_step: dict[int, Noise] = {}
        self.train_codes = CodeUsage()

    # Setup

    def setup(self, stage: str) -> None:
        """Initialize the model from the data, choose the steps per call, compile the networks."""
        strategies.prepare(self.trainer.strategy, self.model)
        self.model.record = getattr(self.trainer.datamodule, "record", self.model.record)  # type: ignore[attr-defined]
        if stage == "fit":
            self.model.check_labels(getattr(self.trainer.datamodule, "num_labels", None))  # type: ignore[attr-defined]
            if self.trainer.global_step == 0:
                self.step = 0  # that of a checkpoint is restored later
            self._restored_steps = self._batch = self.ended_early = None
            self.began = False
            self.written_step = -1
            self._noise_of_step = {}
            self._detector, self.guard = NonFiniteDetector(), UpdateGuard(self)
            self.train_codes = CodeUsage()
            multi_step.set_steps_per_call(
                self, multi_step.choose_steps_per_call(self.trainer, self, LitVAE)
            )
            if not self.model.initialized and self.trainer.ckpt_path is None:
                self.model.init_from_data(DataModuleImages(self.trainer))
            self.model.initialized = True
            self._scheduled = [m for m in self.model.modules() if isinstance(m, Scheduled)]
        if self.compile_networks:
            # Never the LightningModule itself: its logging breaks.
            for network in self.model.networks:
                network.compile()

    def teardown(self, stage: str) -> None:
        """Leave the module as Lightning expects one before a training: with one step per call."""
        if stage == "fit":
            compat.set_optimizer_steps(self.trainer, self.trainer.global_step)
            multi_step.set_steps_per_call(self, 1)
            multi_step.restore_warnings(self)

    def configure_optimizers(self) -> Any:
        """Build the optimizer, joint for a model with a critic, and the scheduler."""
        optimizer = optimizers.build(
            self, self.model.critic, self.make_optimizer, self.make_critic_optimizer
        )
        if self.make_lr_scheduler is None:
            return optimizer
        return optimizers.with_scheduler(optimizer, self.make_lr_scheduler)

    def on_fit_start(self) -> None:
        """Announce that frozen networks encode the training images once."""
        self.awaits_features = await_features(self)

    # Training

    def on_train_start(self) -> None:
        """Continue to count where a checkpoint ended, however many steps its calls had."""
        multi_step.restore_warnings(self)
        epoch_end.check(self, LitVAE)
        if self.awaits_features:
            fill_features(self)  # not before: the weights may be those of a checkpoint
        if self._restored_steps is not None:
            optimizers.check_states(self.trainer.optimizers)
            compat.set_optimizer_steps(self.trainer, self._restored_steps)
            self._restored_steps = None
            if compat.is_between_epochs(self.trainer):
                compat.end_restart(self.trainer)
        if self._random_states and len(self._random_states) == self.trainer.world_size:
            randomness.restore(self._random_states[self.global_rank], self.device)
        self._random_states = []
        self.began = True

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
        batched = randomness.BatchedNoise(batch.indices, size, keys)
        self._noise_of_step = {step: batched.part(i) for i, step in enumerate(steps)}
        for part in parts:
            loss = self._loss(part)
            # As in Lightning's own loop, where autocast ends with the forward pass.
            with torch.autocast(self.device.type, enabled=False):
                optimizer.zero_grad()
                self.manual_backward(loss)
                optimizer.step()
        # The axis of the log counts updates; Lightning adds the last one itself.
        compat.advance_log_axis(self.trainer, len(parts) - 1)
        if self.trainer.is_last_batch:
            for config in self.trainer.lr_scheduler_configs:
                config.scheduler.step()  # type: ignore[call-arg]
        return None

    def _loss(self, batch: Any) -> Tensor:
        """Return the loss of one batch; its terms are logged on the steps that are written."""
        if self.skip_non_finite:
            self.guard.save_state()
        for module in self._scheduled:
            module.step = self.step
            if isinstance(module, SeesBatches):
                module.batch_indices = batch.indices
        terms, objective = self.evaluate_terms(batch, "train", self.step, self.noise_seed)
        for module in self._scheduled:
            if isinstance(module, SeesBatches):
                module.batch_indices = None
        # The one place where the mean over a batch is taken.
        objective = objective.mean()
        loss = objective
        if self.model.critic is not None:
            loss = loss + self.model.critic_objective(terms).mean()
        named = terms.as_dict()
        self.train_codes.update(terms.code_indices(), self.model.codebook_sizes)
        if self.skip_non_finite:
            self.guard.check(loss)
        else:
            self._detector.check(self.step, loss, named)
        self.step += 1
        self._log({"loss": objective, **named})
        return loss

    def _log(self, values: dict[str, Tensor]) -> None:
        step = self.trainer.global_step
        every = self.trainer.log_every_n_steps  # type: ignore[attr-defined]
        if not every or (step + 1) % every != 0 or step == self.written_step:
            return
        self.written_step = step  # once, where several batches are accumulated
        # Each key costs about as much as the training loop around it, so not at every step.
        names = [f"train/{name}" for name in values]
        stacked = mean(torch.stack([value.detach().float().mean() for value in values.values()]))
        means = dict(zip(names, stacked, strict=True))
        for name, value in means.items():
            self.log(name, value, prog_bar=name == "train/loss", logger=False)
        numbers = {name: value.item() for name, value in means.items()}
        self._detector.flush()
        if self.skip_non_finite:
            numbers["train/skipped"] = self.guard.skipped
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.trainer.current_epoch, **numbers}, step)

    def on_train_epoch_end(self) -> None:
        """Log the codebook usage of the epoch."""
        for name, result in self.train_codes.results().items():
            # Every process has the same number; sync_dist only keeps Lightning from warning.
            self.log(f"train/{name}", result.value, sync_dist=True)
        self.train_codes = CodeUsage()

    def on_before_optimizer_step(self, optimizer: Optimizer) -> None:
        """Skip an update that is not finite, if asked for."""
        if self.skip_non_finite:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            scaler = getattr(self.trainer.precision_plugin, "scaler", None)
            self.guard.skip(parameters, scaled=scaler is not None)
            if self.guard.in_a_row == MAX_SKIPPED_IN_A_ROW:
                what = f"each of the last {MAX_SKIPPED_IN_A_ROW} losses or gradients"
                raise NonFinite(what, self.step)

    @property
    def skipped(self) -> int:
        """Number of updates skipped because they were not finite."""
        return self.guard.skipped

    def noise_of(self, indices: Tensor, stage: str, step: int, seed: int) -> Noise:
        """See `EvaluationModule.noise_of`."""
        if stage != "train":
            return super().noise_of(indices, stage, step, seed)
        batched = self._noise_of_step.pop(step, None)
        if batched is not None and seed == self.noise_seed and _same(batched.index, indices):
            return batched
        return Noise(indices, seed, stage, step)

    def on_validation_end(self) -> None:
        """Let schedulers that follow a metric step after a resumed epoch, too."""
        if self.trainer.state.fn == "fit" and not self.trainer.sanity_checking:
            compat.end_restart(self.trainer)

    # Checkpoints

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add this project's record to a checkpoint.

        Raises:
            NonFinite: If the loss or the weights have become NaN or infinite: the checkpoint
                written before is worth more.
        """
        self._detector.flush()
        weights = [p.detach() for p in self.parameters() if p.is_floating_point()]
        if not all(gather(bool(nn.utils.get_total_norm(weights).isfinite()))):
            raise NonFinite("the weights", self.step - 1)
        checkpoint[RECORD_KEY] = _record_of(self).to_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take what this project needs from a checkpoint.

        Lightning's progress in an epoch is in calls, so a call keeps the number of steps that it
        had, unless single batches are needed, whose number is known.
        """
        record = TrainingRecord.from_checkpoint(checkpoint)
        self.model.initialized = True
        self.noise_seed = record.noise_seed
        self.step = record.step
        if not self.is_attached or self.trainer.state.fn != "fit":
            return
        self._restored_steps = checkpoint["global_step"]
        self.guard.skipped = record.skipped
        self._random_states = record.random_states
        self.log_rows = record.log_rows
        _check_processes(record, self.trainer.world_size)
        if self.global_rank == 0 and record.inside_epoch:  # the first process holds those of all
            self.train_codes.counts = {
                name: counts.to(self.device) for name, counts in record.code_counts.items()
            }
        if record.steps_per_call > 1 and self.steps_per_call == 1:
            multi_step.translate_progress(checkpoint, record.steps_per_call, self)
        else:
            multi_step.set_steps_per_call(self, record.steps_per_call)


def _record_of(module: LitVAE) -> TrainingRecord:
    """Return what this project adds to a checkpoint."""
    data = getattr(module.trainer, "datamodule", None)
    epochs, inside_epoch = compat.epoch_progress(module.trainer)
    optimizer, critic_optimizer, lr_scheduler = module.recipes
    assert optimizer is not None
    return TrainingRecord(
        model=module.model.describe(),
        data=data.describe() if isinstance(data, Configurable) else None,
        optimizer=optimizer,
        critic_optimizer=critic_optimizer,
        lr_scheduler=lr_scheduler,
        noise_seed=module.noise_seed,
        step=module.step,
        epochs=epochs,
        inside_epoch=inside_epoch,
        steps_per_call=module.steps_per_call,
        skipped=module.guard.skipped,
        # Of all processes, only the first writes; an error there must not leave others waiting.
        log_rows=from_first(lambda: _rows_written(module.trainer.loggers, module.log_rows)),
        # Nothing here draws from torch's own generators, but networks of others may.
        random_states=gather(randomness.state(module.device)),
        code_counts=module.train_codes.total(),
        ended_early=module.ended_early,
        run=module.run,
        class_names=[str(name) for name in getattr(data, "class_names", None) or ()],
        data_record=None if module.model.record is None else module.model.record.to_dict(),
    )


def _check_processes(record: TrainingRecord, processes: int) -> None:
    """Check that a training continues inside an epoch with as many processes as it began it."""
    held = len(record.random_states) or processes
    if record.inside_epoch and held != processes:
        raise UserError(
            f"this training stopped inside an epoch, which it began with {held} processes: "
            f"continue it with as many, not with {processes}"
        )


def _same(x: Tensor, y: Tensor) -> bool:
    """Return whether two tensors are the same numbers in memory, without waiting for a GPU."""
    return x.data_ptr() == y.data_ptr() and x.shape == y.shape


def _rows_written(loggers: Iterable[Logger], before: int) -> int:
    """Return the number of rows of the run's log, which are on the disk before the checkpoint is.

    Args:
        loggers: The loggers of the training.
        before: Rows of the training that is continued, where this one logs nothing.
    """
    for logger in loggers:
        if isinstance(logger, MetricsLog):
            logger.save()
            return logger.rows
    return before
