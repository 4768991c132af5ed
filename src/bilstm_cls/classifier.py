"""A trained classifier: texts to predictions, in one place for evaluation, calibration, serving and export.

The prediction for a text does not depend on the texts it is batched with.
"""

from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt
import torch

from bilstm_cls.data.batches import collate, evaluation_batches
from bilstm_cls.data.corpus import Corpus
from bilstm_cls.device import Precision, choose_device, on_device, side_by_side
from bilstm_cls.hub import fetched_run
from bilstm_cls.model.classifier import BiLSTMClassifier
from bilstm_cls.run_directory import LoadedModel, RunDirectory
from bilstm_cls.runtime import Prediction, Predictor, Task, softmax

__all__ = ["Classifier", "LoadedModel", "Prediction", "Task", "network_logits", "predict_logits", "softmax"]

MAX_TOKENS = {"cpu": 2**13, "cuda": 2**17}  # padded, in a batch: as many as a device reads fastest
FP32 = Precision(torch.float32, allows_tf32=False)


class Classifier(Predictor):
    """Classifies texts with the model of one run directory; the data it was trained on are not needed.

    Example:
        >>> classifier = Classifier.load("runs/imdb")
        >>> classifier.predict(["A wonderful film."])[0].label
        'pos'
    """

    def __init__(self, loaded: LoadedModel, device: str = "auto", precision: str = "fp32") -> None:
        self.loaded, self.config, self.ngrams = loaded, loaded.config, loaded.ngrams
        self.labels, self.task, self.tokenizer = loaded.labels, loaded.task, loaded.tokenizer
        self.max_length, self.truncate = loaded.config.text.max_length, loaded.config.text.truncate
        self.device = choose_device(device)
        self.precision = Precision.named(precision, self.device)
        self.model = loaded.model
        for member in loaded.members:
            member.to(self.device).eval()

    @classmethod
    def load(cls, path: str | Path, *, device: str = "auto", precision: str = "fp32") -> "Classifier":
        """Reads and verifies a run directory, or with `hf://user/name` one on the Hugging Face Hub.

        In `bf16` a processor with matrix units answers faster, and the digits after the third may change. Raises
        CheckpointError where a file is missing, damaged, or does not fit the others, ConfigError where the device or
        its precision is not there, and the errors of `fetched_run`.
        """
        return cls(RunDirectory(fetched_run(path)).load_model(), device, precision)

    def logits(self, corpus: Corpus) -> npt.NDArray[np.float64]:
        return network_logits(self.loaded, corpus, self.precision)


def network_logits(loaded: LoadedModel, corpus: Corpus, precision: Precision = FP32) -> npt.NDArray[np.float64]:
    """Returns the sum `[N, C]` of the logits of all networks of a run."""
    logits = np.stack([predict_logits(member, corpus, precision) for member in loaded.members])
    return np.asarray(logits.sum(0, dtype=np.float64))


def predict_logits(
    model: BiLSTMClassifier, corpus: Corpus, precision: Precision = FP32, *, rank: int = 0, size: int = 1
) -> npt.NDArray[np.float32]:
    """Returns the logits `[N, C]` of one network, in the corpus's order.

    Batches are cut by padded tokens after sorting by length. The model keeps its mode, training or not, and no random
    number is drawn.

    Of `size` processes that share the batches, the one of this `rank` gives zeros for the texts of the others, so the
    sum over all ranks is the whole.
    """
    device = model.embedding.weight.device
    logits = np.zeros((len(corpus), model.project.out_features), dtype=np.float32)
    batches = evaluation_batches(corpus.lengths, max_tokens=MAX_TOKENS[device.type])[rank::size]

    def read(indices: npt.NDArray[np.int64]) -> torch.Tensor:
        batch = collate(corpus, indices)
        with torch.inference_mode(), precision.autocast(device):
            return cast("torch.Tensor", model(on_device(batch.token_ids, device), batch.lengths))

    was_training = model.training
    model.eval()
    try:
        with precision.applied(device):
            parts = side_by_side(read, batches) if device.type == "cpu" else [read(indices) for indices in batches]
    finally:
        model.train(was_training)
    for indices, part in zip(batches, parts, strict=True):  # after all, because a copy waits for the GPU
        logits[indices] = part.cpu().numpy()
    return logits
