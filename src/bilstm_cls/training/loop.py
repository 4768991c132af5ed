"""The training loop: a generator that yields what happened. It neither prints nor saves.

All randomness is a function of (seed, step) or (seed, epoch): dropout masks are drawn from a generator seeded anew for
every step, batches from one seeded for every epoch. So a position and the tensors are all there is to save, and how
often a run is evaluated, logged, saved or resumed cannot change its result.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from bilstm_cls.config import TrainConfig
from bilstm_cls.data.batches import Batch, Indices, collate, training_batches
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import allow_tf32, on_device
from bilstm_cls.errors import ConfigError, DivergedError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training.distributed import ALONE, Group
from bilstm_cls.training.objectives import OBJECTIVES, Inputs, Task
from bilstm_cls.training.optimizer import (
    WeightAverage,
    build_optimizers,
    clip_gradients,
    learning_rate_at,
    load_optimizer_state,
    optimizer_state,
    trainable_parameters,
    within,
)

LOWER_IS_BETTER = {"log_loss", "ece"}
MAX_LOSS = 1e4
"""Nats per text beyond which a run is lost: a network that is merely bad stays far below, and saturated gates can go on
for ever with numbers that are huge but finite."""
MIN_CUDNN_OF_BF16 = 91300
"""The first cuDNN whose recurrent layers take bfloat16, as `torch.backends.cudnn.version()` counts."""
Row = dict[str, Any]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer update.

    Attributes:
        step: updates so far, this one included.
        total_steps: updates of the whole run if nothing ends it early.
        epoch: counted from 1.
        loss: mean over the batch.
        num_texts: texts in the batch.
        num_tokens: tokens in the batch without padding.
        learning_rate: of this update.
        grad_norm: before clipping.
    """

    step: int
    total_steps: int
    epoch: int
    loss: float
    num_texts: int
    num_tokens: int
    learning_rate: float
    grad_norm: float


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One pass over the valid split: its history row, and whether it is the best so far."""

    row: Row
    is_best: bool


@dataclass
class Progress:
    """Where a run stands; with the tensors, all that a resumed run needs."""

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    loss_sum: float = 0.0
    num_texts: int = 0
    num_tokens: int = 0
    evaluated_step: int = 0
    best_value: float | None = None
    best_step: int = 0
    evaluations_without_gain: int = 0
    history: list[Row] = field(default_factory=list)

    def facts(self) -> Row:
        """Returns what `metrics.json` says of it."""
        return {
            "train/steps": self.step,
            "train/best_step": self.best_step,
            "time/train_seconds": self.seconds,
            "time/train_tokens_per_second": self.num_tokens / max(self.seconds, 1e-9),
        }


class Trainer:
    """A model in training: makes one step, and gives and takes its whole state.

    Args:
        model: on its device.
        corpus: the encoded train split, with label ids.
        config: the `train` section.
        seed: of dropout and of the order of batches.
        class_weights: one per label, or None where all weigh 1.
        unlabelled: the encoded texts without labels, for an objective that reads such; train where there are none.
        group: the processes that share every batch; all must be given the same of everything else.
    """

    def __init__(
        self,
        model: BiLSTMClassifier,
        corpus: Corpus,
        config: TrainConfig,
        *,
        seed: int,
        class_weights: Sequence[float] | None = None,
        unlabelled: Corpus | None = None,
        group: Group = ALONE,
    ) -> None:
        assert corpus.label_ids is not None
        self.model = model
        self.corpus = corpus
        self.config = config
        self.seed = seed
        self.group = group
        self.device = model.embedding.weight.device
        self.progress = Progress()
        self.optimizers = build_optimizers(
            model, name=config.optimizer, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.average = None if config.ema_decay is None else WeightAverage(model, config.ema_decay)
        self.precision = autocast_type(config.precision, self.device)
        self.allows_tf32 = allows_tf32(config.precision, self.device)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=self.precision == torch.float16)
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, device=self.device)
        self.total_steps = sum(len(self._plan(epoch)) for epoch in range(config.epochs))
        self.batches = self._plan(0)
        self.unlabelled = unlabelled or corpus
        self.unlabelled_batches: tuple[int, list[Indices]] = (-1, [])

    def _plan(self, epoch: int) -> list[Indices]:
        return training_batches(
            self.corpus.lengths,
            batch_size=self.config.batch_size,
            batch_tokens=self.config.batch_tokens,
            seed=self.seed,
            epoch=epoch,
        )

    def _next_unlabelled(self) -> Indices:
        """Returns the texts without labels that this step reads: a function of the step alone."""
        size = self.config.unlabelled_batch_size or self.config.batch_size
        epoch, position = divmod(self.progress.step, math.ceil(len(self.unlabelled) / size))
        if self.unlabelled_batches[0] != epoch:
            plan = training_batches(
                self.unlabelled.lengths, batch_size=size, batch_tokens=None, seed=self.seed + 1, epoch=epoch
            )
            self.unlabelled_batches = epoch, plan
        return self.unlabelled_batches[1][position]

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates."""
        train = self.config
        return learning_rate_at(
            step,
            total_steps=self.total_steps,
            peak=train.learning_rate,
            schedule=train.schedule,
            warmup=train.warmup,
        )

    def step(self) -> StepReport:
        """Makes the next optimizer update.

        Raises:
            DivergedError: the loss is not finite or beyond `MAX_LOSS`, or the gradient is not finite; the weights are
                as before the step.
        """
        started = time.monotonic()
        progress = self.progress
        indices = self.batches[progress.batch]
        num_tokens = int(self.corpus.lengths[indices].sum())
        learning_rate = self.learning_rate(progress.step)
        loss, norm = self._update(indices, learning_rate)
        progress.step += 1
        progress.loss_sum += loss * len(indices)
        progress.num_texts += len(indices)
        progress.num_tokens += num_tokens
        progress.batch += 1
        epoch = progress.epoch + 1
        if progress.batch == len(self.batches):
            progress.epoch += 1
            progress.batch = 0
            if progress.epoch < self.config.epochs:
                self.batches = self._plan(progress.epoch)
        progress.seconds += time.monotonic() - started
        return StepReport(
            step=progress.step,
            total_steps=self.total_steps,
            epoch=epoch,
            loss=loss,
            num_texts=len(indices),
            num_tokens=num_tokens,
            learning_rate=learning_rate,
            grad_norm=norm,
        )

    def _gradients(self, batch: Batch, num_texts: int, total_weight: float) -> float:
        """Adds the gradients of these texts of `num_texts`, and returns their part of the whole batch's mean loss."""
        assert batch.label_ids is not None
        label_ids = batch.label_ids.to(self.device, non_blocking=True)

        def loss_of(logits: Tensor) -> Tensor:
            smoothing = self.config.label_smoothing
            loss = F.cross_entropy(
                logits, label_ids, weight=self.class_weights, label_smoothing=smoothing, reduction="sum"
            )
            return loss / total_weight

        def backward(loss: Tensor) -> None:
            self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

        labelled = self._inputs(batch, num_texts)
        unlabelled = labelled
        if self.config.reads_unlabelled:
            indices = self._next_unlabelled()
            own = indices[self.group.rank :: self.group.size]
            if len(own):
                unlabelled = self._inputs(collate(self.unlabelled, own), len(indices))
        task = Task(
            self.model, labelled, unlabelled, loss_of, backward, self.scaler.scale, self.config.adversarial_epsilon
        )
        autocast = torch.autocast(self.device.type, self.precision, enabled=self.precision != torch.float32)
        with allow_tf32(self.allows_tf32), autocast:
            return OBJECTIVES[self.config.objective](task).item()

    def _inputs(self, batch: Batch, num_texts: int) -> Inputs:
        return Inputs(on_device(batch.token_ids, self.device), batch.lengths, 1 / num_texts)

    def _weight_of(self, indices: Indices) -> float:
        """The sum of the weights of the texts of a batch, which its loss is divided by."""
        if self.class_weights is None:
            return float(len(indices))
        assert self.corpus.label_ids is not None
        return float(self.class_weights[torch.from_numpy(self.corpus.label_ids[indices])].sum())

    def _update(self, indices: Indices, learning_rate: float) -> tuple[float, float]:
        """Makes the update of a batch, of which this process computes every `group.size`-th text."""
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.manual_seed(((self.seed << 32) + self.progress.step * self.group.size + self.group.rank) % 2**63)
        own = indices[self.group.rank :: self.group.size]
        value = 0.0
        if len(own):
            value = self._gradients(collate(self.corpus, own), len(indices), self._weight_of(indices))
        value = self.group.sum(value)
        self.group.sum_gradients(*trainable_parameters(self.model))
        for optimizer in self.optimizers:
            self.scaler.unscale_(optimizer)
        norm = clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        is_scaled = self.scaler.is_enabled()  # a scaled gradient may overflow now and then: the scaler skips that step
        if not value <= MAX_LOSS or not (math.isfinite(norm) or is_scaled):
            raise self.diverged(self.progress.step, f"loss {value:g}, gradient norm {norm:g}")
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * self._share_of_rate(group["depth"])
            self.scaler.step(optimizer)
        self.scaler.update()
        if self.average is not None:
            self.average.update(self.model)
        return value, norm

    def _share_of_rate(self, depth: int) -> float:
        is_frozen = self.config.unfreeze == "gradual" and self.progress.epoch < depth
        return 0.0 if is_frozen else self.config.layer_lr_decay**depth

    def diverged(self, steps_before: int, found: str) -> DivergedError:
        """Returns the error that says in which update, after `steps_before` others, training went astray."""
        rate = self.learning_rate(steps_before)
        return DivergedError(
            f"training diverged at step {steps_before + 1}: {found}, learning rate {rate:g}; "
            f"lower train.learning_rate or train.max_grad_norm and start again"
        )

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the valid split has to be read before the next step."""
        progress, every = self.progress, self.config.evaluate_every
        if progress.step == progress.evaluated_step:
            return False
        if every == "epoch":
            return progress.batch == 0
        return progress.step % int(every) == 0 or self.is_out_of_epochs

    @property
    def is_out_of_epochs(self) -> bool:
        return self.progress.epoch >= self.config.epochs

    @property
    def is_out_of_time(self) -> bool:
        limit = self.config.max_minutes
        return limit is not None and self.group.any(self.progress.seconds >= limit * 60)

    @property
    def is_out_of_patience(self) -> bool:
        patience = self.config.patience
        return patience is not None and self.progress.evaluations_without_gain >= patience

    def record(self, metrics: Row) -> EvaluationReport:
        """Notes an evaluation of the present weights, and whether it is the best so far.

        Args:
            metrics: flat keys such as `valid/accuracy`; `train.select_by` must be among them.
        """
        progress = self.progress
        selected = metrics[self.config.select_by]
        if selected is None:
            raise ConfigError(
                f"train.select_by: {self.config.select_by!r} is undefined here because a label has no valid example; "
                f"choose another metric"
            )
        best = next((row for row in reversed(progress.history) if row["is_best"]), None)
        is_best = best is None or self._rank(metrics) > self._rank(best)
        has_gained = best is None or self._rank(metrics)[0] > self._rank(best)[0]
        row = {
            "step": progress.step,
            "epoch": progress.epoch + progress.batch / len(self.batches),
            "learning_rate": self.learning_rate(max(0, progress.step - 1)),
            "train/loss": progress.loss_sum / max(1, progress.num_texts),
            **metrics,
            "is_best": is_best,
            "time/train_seconds": progress.seconds,
        }
        if is_best:
            progress.best_value, progress.best_step = float(selected), progress.step
        progress.evaluations_without_gain = 0 if has_gained else progress.evaluations_without_gain + 1
        progress.evaluated_step = progress.step
        progress.loss_sum, progress.num_texts = 0.0, 0
        progress.history.append(row)
        return EvaluationReport(row=row, is_best=is_best)

    def _rank(self, metrics: Row) -> tuple[float, float]:
        """Returns what is the greater, the better an evaluation is: of equal scores, as few texts have, the surer."""
        selected = float(metrics[self.config.select_by])
        is_lower_better = self.config.select_by.rpartition("/")[2] in LOWER_IS_BETTER
        return -selected if is_lower_better else selected, -float(metrics["valid/log_loss"])

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Puts the averaged weights into the model for a `with` block, where an average is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.applied_to(self.model)

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Takes from a state the weights that were judged: the averaged ones where an average is kept."""
        self.model.load_state_dict(within(tensors, "model.") | within(tensors, "average."))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all tensors, and all numbers as JSON holds them."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        numbers: dict[str, Any] = {"progress": asdict(self.progress)}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
            numbers["average_updates"] = self.average.num_updates
        of_optimizers, numbers["optimizers"] = optimizer_state(self.optimizers)
        if self.scaler.is_enabled():
            numbers["scaler"] = self.scaler.state_dict()
        return tensors | of_optimizers, numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Takes back what `state` gave.

        Raises:
            KeyError, RuntimeError, TypeError: the state is of another model or configuration.
        """
        self.model.load_state_dict(within(tensors, "model."))
        if self.average is not None:
            average = within(tensors, "average.")
            for name, weights in self.average.weights.items():
                weights.copy_(average[name])
            self.average.num_updates = numbers["average_updates"]
        load_optimizer_state(self.optimizers, tensors, numbers["optimizers"])
        if self.scaler.is_enabled():
            self.scaler.load_state_dict(numbers["scaler"])
        self.progress = Progress(**numbers["progress"])
        if not self.is_out_of_epochs:
            self.batches = self._plan(self.progress.epoch)


def training(trainer: Trainer, evaluate: Callable[[], Row]) -> Iterator[StepReport | EvaluationReport]:
    """Trains until epochs, patience or time run out, from wherever the trainer stands.

    Args:
        trainer: new, or with a loaded state.
        evaluate: judges the trainer's present (averaged) weights on the valid split and returns flat metrics.

    Yields:
        A report after every step and after every evaluation. At each of them the trainer's state can be saved, and a
        run that goes on from it ends with the same bits.
    """
    while True:
        is_unjudged = trainer.progress.evaluated_step < trainer.progress.step
        if trainer.is_evaluation_due or (trainer.is_out_of_time and is_unjudged):
            started = time.monotonic()
            metrics = evaluate()
            trainer.progress.seconds += time.monotonic() - started
            yield trainer.record(metrics)
        if trainer.is_out_of_epochs or trainer.is_out_of_time or trainer.is_out_of_patience:
            return
        yield trainer.step()


def autocast_type(precision: str, device: torch.device) -> torch.dtype:
    """Returns the type that the factors of matrix products are cast to.

    Raises:
        ConfigError: the device's recurrent layers do not have the type that is asked for.
    """
    if precision in ("tf32", "fp16") and device.type == "cpu":
        raise ConfigError(f"train.precision: {precision!r} is for CUDA; on a CPU use 'bf16' or 'fp32'")
    if precision == "bf16" and device.type == "cuda" and not _cuda_has_bf16():
        raise ConfigError(
            f"train.precision: 'bf16' needs a GPU that has it and cuDNN {MIN_CUDNN_OF_BF16} or later, here is cuDNN "
            f"{_cudnn_version()}; use 'tf32' or 'fp16'"
        )
    return {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision, torch.float32)


def allows_tf32(precision: str, device: torch.device) -> bool:
    """Returns whether cuDNN may shorten factors: in `tf32`, which `auto` is on CUDA.

    There, with 128 units, it is as fast as 16-bit floats. Those lose the gradient of a mean over a long text, as each
    step's share is below their smallest number, and cuDNN is slow in bfloat16 but for many units.
    """
    return device.type == "cuda" and precision in ("auto", "tf32")


def _cuda_has_bf16() -> bool:
    return torch.cuda.is_bf16_supported() and _cudnn_version() >= MIN_CUDNN_OF_BF16


def _cudnn_version() -> int:
    return torch.backends.cudnn.version() or 0  # type: ignore[no-untyped-call]
