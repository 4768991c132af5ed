"""The training loop: a generator that yields what happened. It neither prints nor saves.

All randomness is a function of (seed, step) or (seed, epoch): dropout masks are drawn from a generator seeded anew for
every step, batches from one seeded for every epoch. So a position and the tensors are all there is to save, and how
often a run is evaluated, logged, saved or resumed cannot change its result.

Shapes: B texts of a batch, T tokens (padded), C labels.
"""

import contextlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Annotated, Any

import numpy as np
import torch
from pydantic import Field, FiniteFloat, TypeAdapter
from torch import Tensor

from bilstm_cls.config import TrainConfig
from bilstm_cls.data.batches import Indices, collate, training_batches
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import Precision, on_device
from bilstm_cls.errors import ConfigError, DivergedError
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.training import optimizer as optim
from bilstm_cls.training.distributed import ALONE, Group
from bilstm_cls.training.objectives import OBJECTIVES, Inputs, StepContext, label_loss

LOWER_IS_BETTER = {"log_loss", "ece", "hamming_loss"}
MAX_LOSS = 1e4
"""Nats per text beyond which a run is lost: a network that is merely bad stays far below, and saturated gates can go on
for ever with numbers that are huge but finite."""

Row = dict[str, Any]
Count = Annotated[int, Field(ge=0, lt=2**53)]


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimizer update, the `step`th of about `total_steps`; texts and tokens are those of its batch."""

    step: int
    total_steps: int
    epoch: int  # from 1
    loss: float  # mean over the batch
    num_texts: int
    num_tokens: int  # without padding
    learning_rate: float
    grad_norm: float  # before clipping


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """One pass over the valid split: its history row, and whether it is the best so far."""

    row: Row
    is_best: bool


@dataclass
class Progress:
    """Where a run or a pretraining is; with the tensors, all that a resumed one needs."""

    step: Count = 0
    epoch: Count = 0
    batch: Count = 0
    chunk: Count = 0  # of the texts of a batch, in pretraining
    seconds: FiniteFloat = 0.0
    loss_sum: FiniteFloat = 0.0
    num_texts: Count = 0
    num_tokens: Count = 0
    evaluated_step: Count = 0
    best_value: FiniteFloat | None = None
    best_step: Count = 0
    evaluations_without_gain: Count = 0
    history: list[Row] = field(default_factory=list)

    def facts(self) -> Row:
        """Returns what `metrics.json` says of it."""
        return {
            "train/steps": self.step,
            "train/best_step": self.best_step,
            "time/train_seconds": self.seconds,
            "time/train_tokens_per_second": self.num_tokens / max(self.seconds, 1e-9),
        }


PROGRESS = TypeAdapter(Progress)
"""Reads what was saved of one; raises a ValueError where it was forged."""


class Trainer:
    """A model in training: makes one step, records evaluations, and saves and restores its whole state.

    Args:
        model: on its device.
        corpus: the encoded train split, with label ids.
        config: the `train` section.
        seed: of dropout and of the order of batches.
        class_weights: one per label, or None where all weigh 1.
        unlabelled: encoded texts without labels, for an objective or a teacher; train where there are none.
        group: the processes that share every batch; all must be given the same of everything else.
    """

    def __init__(
        self, model: BiLSTMClassifier, corpus: Corpus, config: TrainConfig, *, seed: int,
        class_weights: Sequence[float] | None = None, unlabelled: Corpus | None = None, group: Group = ALONE,
    ) -> None:  # fmt: skip
        assert corpus.label_ids is not None
        self.model, self.corpus, self.config, self.seed, self.group = model, corpus, config, seed, group
        self.device = model.embedding.weight.device
        self.progress = Progress()
        self.optimizers = optim.build_optimizers(
            model, name=config.optimizer, weight_decay=config.weight_decay, momentum=config.momentum
        )
        self.average = None if config.ema_decay is None else optim.WeightAverage(model, config.ema_decay)
        self.precision = Precision.named(config.precision, self.device, model.encoder)
        self.class_weights = None if class_weights is None else torch.tensor(class_weights, device=self.device)
        self.unlabelled = unlabelled or corpus
        self.unlabelled_batches: tuple[int, list[Indices]] = (-1, [])
        self.objective = OBJECTIVES[config.objective]
        is_multi = corpus.label_ids.ndim == 2
        self.context = StepContext(model, self._loss_of, config.adversarial_epsilon, is_multi)
        self.num_answers = corpus.label_ids.shape[1] if is_multi else 1  # for each text, whose loss is their mean
        self.is_out_of_time = False
        self._start_epoch()
        self.total_steps = config.epochs * len(self.batches)

    def _start_epoch(self) -> None:
        """Plans the batches of the epoch in progress, and unfreezes what learns from it on."""
        config, epoch = self.config, self.progress.epoch
        options: Any = {"batch_size": config.batch_size, "batch_tokens": config.batch_tokens}
        self.batches = training_batches(self.corpus.lengths, **options, seed=self.seed, epoch=epoch)
        if config.unfreeze == "gradual":
            optim.freeze_below(self.optimizers, epoch)

    def learning_rate(self, step: int) -> float:
        """Returns the learning rate of the update after `step` updates."""
        options: Any = {"schedule": self.config.schedule, "warmup": self.config.warmup}
        return optim.learning_rate_at(step, total_steps=self.total_steps, peak=self.config.learning_rate, **options)

    def step(self) -> StepReport:
        """Makes the next optimizer update, or raises a DivergedError before any weight has changed."""
        started = time.monotonic()
        progress = self.progress
        indices = self.batches[progress.batch]  # [B] places in the corpus
        report = self._update(indices, self.learning_rate(progress.step))
        progress.step += 1
        progress.loss_sum += report.loss * len(indices)
        progress.num_texts += len(indices)
        progress.num_tokens += report.num_tokens
        progress.batch += 1
        if progress.batch == len(self.batches):
            progress.epoch += 1
            progress.batch = 0
            if not self.is_out_of_epochs:
                self._start_epoch()
        progress.seconds += time.monotonic() - started
        self._check_time()
        return report

    def _update(self, indices: Indices, learning_rate: float) -> StepReport:
        """Makes the update of a batch, of which this process computes every `group.size`-th text."""
        self.model.train()
        for optimizer in self.optimizers:
            optimizer.zero_grad()
        torch.manual_seed(step_seed(self.seed, self.progress.step, self.group.rank))
        loss = self.group.sum(self._gradients(indices))
        self.group.sum_gradients(*optim.trainable_parameters(self.model))
        active = [o for o in self.optimizers if any(p.grad is not None for g in o.param_groups for p in g["params"])]
        norm = optim.clip_gradients(self.model.parameters(), self.config.max_grad_norm)
        if not loss <= MAX_LOSS or not math.isfinite(norm):
            raise self.diverged(self.progress.step, f"loss {loss:g}, gradient norm {norm:g}")
        optim.update(active, learning_rate, layer_lr_decay=self.config.layer_lr_decay)
        if self.average is not None:
            self.average.update(self.model)
        step, epoch = self.progress.step + 1, self.progress.epoch + 1
        num_tokens = int(self.corpus.lengths[indices].sum())
        return StepReport(step, self.total_steps, epoch, loss, len(indices), num_tokens, learning_rate, norm)

    def _gradients(self, indices: Indices) -> float:
        """Adds the gradients of this process's texts, and returns their part of the whole batch's mean loss."""
        loss = 0.0
        with self.precision.applied(self.device):
            if inputs := self._inputs(self.corpus, indices):
                loss = self.objective.labelled(self.context, inputs).item()
            is_taught, term = self.unlabelled.soft_labels is not None, self.objective.unlabelled
            if (is_taught or term) and (inputs := self._inputs(self.unlabelled, self._next_unlabelled())):
                if is_taught:
                    self.objective.labelled(self.context, inputs)
                if term:
                    term(self.context, inputs)
        return loss

    def _inputs(self, corpus: Corpus, indices: Indices) -> Inputs | None:
        """Returns this process's texts of a batch, or None where the batch has fewer texts than there are processes."""
        part = indices[self.group.rank :: self.group.size]
        if not len(part):
            return None
        batch = collate(corpus, part)
        num_answers = len(indices) * self.num_answers
        inputs = Inputs(on_device(batch.token_ids, self.device), batch.lengths, 1 / num_answers)
        if batch.soft_labels is not None:
            return replace(inputs, soft_labels=on_device(batch.soft_labels, self.device))
        if batch.label_ids is None or corpus.label_ids is None:
            return inputs
        weights, total = self.class_weights, float(num_answers)
        if weights is not None and not self.context.is_multi:
            total = float(weights[torch.from_numpy(corpus.label_ids[indices])].sum())
        return replace(inputs, label_ids=on_device(batch.label_ids, self.device), label_weight=1 / total)

    def _loss_of(self, logits: Tensor, inputs: Inputs) -> Tensor:
        """Returns the part of the batch's mean loss that texts with logits `[B, C]` have."""
        if inputs.soft_labels is not None:  # Hinton et al. 2015, at temperature 1
            return inputs.weight * label_loss(logits, inputs.soft_labels, None, 0.0, self.context.is_multi)
        assert inputs.label_ids is not None
        weights, smoothing = self.class_weights, self.config.label_smoothing
        return inputs.label_weight * label_loss(logits, inputs.label_ids, weights, smoothing, self.context.is_multi)

    def _next_unlabelled(self) -> Indices:
        """Returns the texts without labels that this step reads: a function of the step alone."""
        size = self.config.unlabelled_batch_size or self.config.batch_size
        epoch, position = divmod(self.progress.step, math.ceil(len(self.unlabelled) / size))
        if self.unlabelled_batches[0] != epoch:
            batches = training_batches(
                self.unlabelled.lengths, batch_size=size, batch_tokens=None, seed=self.seed + 1, epoch=epoch
            )
            self.unlabelled_batches = epoch, batches
        return self.unlabelled_batches[1][position]

    def diverged(self, steps_before: int, found: str) -> DivergedError:
        """Returns the error that says in which update, after `steps_before` others, training diverged."""
        return diverged("train", steps_before + 1, self.learning_rate(steps_before), found)

    def _check_time(self) -> None:
        """Sets `is_out_of_time`, to the same value in all processes, which come here together."""
        minutes = self.config.max_minutes
        self.is_out_of_time = minutes is not None and self.group.any(self.progress.seconds >= 60 * minutes)

    @property
    def is_out_of_epochs(self) -> bool:
        return self.progress.epoch >= self.config.epochs

    @property
    def is_finished(self) -> bool:
        """Whether no step is to follow: epochs, time or patience are used up."""
        patience = self.config.patience or math.inf
        return self.is_out_of_epochs or self.is_out_of_time or self.progress.evaluations_without_gain >= patience

    @property
    def is_evaluation_due(self) -> bool:
        """Whether the valid split has to be read before the next step."""
        progress, every = self.progress, self.config.evaluate_every
        if progress.step == progress.evaluated_step:
            return False
        if self.is_out_of_time or self.is_out_of_epochs:
            return True
        return progress.batch == 0 if every == "epoch" else progress.step % int(every) == 0

    def record(self, metrics: Row, seconds: float = 0.0) -> EvaluationReport:
        """Records the metrics of the present weights, and whether they are the best so far."""
        progress = self.progress
        name = self.config.select_by
        if (selected := metrics.get(name)) is None:
            raise ConfigError(f"train.select_by: {name!r} is undefined here; a label may have no valid example")
        progress.seconds += seconds
        rank = self._rank(metrics)
        best = max(map(self._rank, progress.history), default=(-math.inf, -math.inf))
        is_best, has_gained = rank > best, rank[0] > best[0]
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
        self._check_time()
        return EvaluationReport(row=row, is_best=is_best)

    def _rank(self, metrics: Row) -> tuple[float, float]:
        """Returns a key that is the greater, the better an evaluation is: of equal scores, the lower log loss wins."""
        selected = float(metrics[self.config.select_by])
        is_lower_better = self.config.select_by.rpartition("/")[2] in LOWER_IS_BETTER
        return -selected if is_lower_better else selected, -float(metrics["valid/log_loss"])

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Puts the averaged weights into the model for a `with` block, where an average is kept."""
        return contextlib.nullcontext() if self.average is None else self.average.applied_to(self.model)

    def load_weights(self, tensors: dict[str, Tensor]) -> None:
        """Takes from a state the weights that were evaluated: the averaged ones where an average is kept."""
        self.model.load_state_dict(optim.strip_prefix(tensors, "model.") | optim.strip_prefix(tensors, "average."))

    def state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Returns all tensors, and all numbers as JSON holds them."""
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        numbers: dict[str, Any] = {"progress": asdict(self.progress)}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.weights.items()}
            numbers["average_updates"] = self.average.num_updates
        of_optimizers, numbers["optimizers"] = optim.optimizer_state(self.optimizers)
        return tensors | of_optimizers, numbers

    def load_state(self, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
        """Restores what `state` returned; raises many an error where that is of another model or config, or forged."""
        self.model.load_state_dict(optim.strip_prefix(tensors, "model."))
        if self.average is not None:
            average = optim.strip_prefix(tensors, "average.")
            for name, weights in self.average.weights.items():
                weights.copy_(average[name])
            self.average.num_updates = numbers["average_updates"]
        optim.load_optimizer_state(self.optimizers, tensors, numbers["optimizers"])
        self.progress = PROGRESS.validate_python(numbers["progress"])
        if not all(row["step"] and "is_best" in row and self._rank(row) for row in self.progress.history):
            raise ValueError("a row of the history is forged")
        minutes = self.config.max_minutes or math.inf
        self.is_out_of_time = self.progress.seconds >= 60 * minutes  # all processes load the same state
        if not self.is_out_of_epochs:
            self._start_epoch()


def training(trainer: Trainer, evaluate: Callable[[], Row]) -> Iterator[StepReport | EvaluationReport]:
    """Trains until epochs, patience or time run out, from wherever the trainer stands.

    Args:
        trainer: new, or with a loaded state.
        evaluate: returns flat metrics of the trainer's present (averaged) weights on the valid split.

    Yields:
        A report after every step and after every evaluation. At each of them the trainer's state can be saved, and a
        run that continues from it ends with the same bits.
    """
    while True:
        if trainer.is_evaluation_due:
            started = time.monotonic()
            metrics = evaluate()
            yield trainer.record(metrics, time.monotonic() - started)
        if trainer.is_finished:
            return
        yield trainer.step()


def diverged(section: str, step: int, rate: float, found: str) -> DivergedError:
    """Returns the error that says in which update a run diverged, and which keys of the config's section to lower."""
    return DivergedError(
        f"{section}ing diverged at step {step}: {found}, learning rate {rate:g}; "
        f"lower {section}.learning_rate or {section}.max_grad_norm and start again"
    )


def step_seed(seed: int, step: int, rank: int = 0) -> int:
    """Returns the 64 bits that the random numbers of a step begin with, hashed as a CPU reads 32 of them."""
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1, np.uint64)[0])
