"""Models with random weights, for what must hold of any model."""

from collections.abc import Sequence

import torch

from bilstm_cls.config_file import load_config
from bilstm_cls.data.tokenizer import Tokenizer
from bilstm_cls.run_directory import LoadedModel, build_model

TEXT = "The film was good, but not <br />that good: 3.5/10... I'd say 中文 😀 'Straße' İX!!!"


def untrained(
    *overrides: str, texts: Sequence[str] = (TEXT,), kind: str = "words", labels: Sequence[str] = ("neg", "pos")
) -> LoadedModel:
    """Returns a model with strong random weights and a vocabulary of these texts."""
    tiny = ["embedding.dim=6", "model.hidden_size=5", "text.max_length=12", "text.min_freq=1"]
    config = load_config(None, [f"text.tokenizer={kind}", *tiny, *overrides])
    tokenizer = Tokenizer.train(texts, kind=kind, lowercase=config.text.lowercase)
    torch.manual_seed(1)
    model = build_model(config, len(tokenizer), len(labels))
    model.set_embedding(torch.randn(len(tokenizer), 6))
    with torch.no_grad():
        model.project.weight.mul_(4)
        if model.bigrams is not None:
            model.bigrams.weight[1:] = torch.randn(len(model.bigrams.weight) - 1, 6)
    return LoadedModel(model.eval(), tokenizer, list(labels), config)
