import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from bilstm_cls import bench
from bilstm_cls.bench import OURS, PADDED, SORTED, TUTORIAL, TutorialModel, Work, bench_table, synthetic_corpus
from bilstm_cls.config import Config
from bilstm_cls.config_file import load_config

SMALL = ["model.hidden_size=4", "embedding.dim=4", "train.batch_size=4", "text.max_length=30", "train.device=cpu"]


def work_of(*overrides: str, num_texts: int = 32, num_batches: int = 2) -> Work:
    config = load_config(None, [*SMALL, *overrides])
    return Work(config, synthetic_corpus(config, num_texts=num_texts, vocab_size=50), 50, 2, num_batches)


@pytest.fixture(scope="module")
def result() -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "usable_cores", lambda: 1)
        return bench.benchmark(work_of(), repeats=2)


def test_random_texts_are_the_same_each_time_and_as_long_as_the_model_reads() -> None:
    config = load_config(None, [*SMALL, "text.max_length=200"])
    one, other = (synthetic_corpus(config, num_texts=100, vocab_size=50) for _ in range(2))
    assert one.token_ids.tobytes() == other.token_ids.tobytes()
    assert 10 <= one.lengths.min() < one.lengths.max() == 200
    assert 2 <= one.token_ids.min() < one.token_ids.max() == 49
    assert len(one.token_ids) == one.lengths.sum()
    assert one.label_ids is not None
    assert set(one.label_ids.tolist()) == {0, 1}


def test_every_way_is_timed_in_training_and_prediction(result: dict[str, Any]) -> None:
    assert [row["way"] for row in result["training"]] == [OURS, TUTORIAL, SORTED, PADDED]
    assert [row["way"] for row in result["prediction"]] == [OURS, TUTORIAL]
    assert all(0 < row["slowest"] <= row["ktokens_per_second"] <= row["fastest"]
               for kind in ("training", "prediction") for row in result[kind])  # fmt: skip


def test_ratios_are_to_ours(result: dict[str, Any]) -> None:
    for kind in ("training", "prediction"):
        assert result[kind][0]["ratio_to_ours"] == 1
        assert all(row["ratio_to_ours"] > 0 for row in result[kind])


def test_padding_and_share_are_shares_and_the_result_is_json(result: dict[str, Any]) -> None:
    assert 0 <= result["padding"] < 1
    assert 0 < result["share_of_peak"] < 1
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(("way", "number"), [(OURS, 2), (SORTED, 1), (PADDED, 1)])
def test_the_table_has_a_line_for_every_way(way: str, number: int, result: dict[str, Any]) -> None:
    lines = bench_table(result).splitlines()
    assert sum(line.strip().startswith(f"{way} ") for line in lines) == number


def test_a_corpus_of_one_batch_is_enough(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "usable_cores", lambda: 1)
    assert bench.benchmark(work_of(num_texts=3, num_batches=8), repeats=1)["training"][0]["ktokens_per_second"] > 0


def test_the_rival_over_packed_texts_reads_no_padding_and_the_one_over_padding_does() -> None:
    torch.manual_seed(0)
    packed, padded = (TutorialModel(work_of(), packed=is_packed).eval() for is_packed in (True, False))
    padded.load_state_dict(packed.state_dict())
    token_ids = torch.tensor([[2, 3, 4, 5], [6, 7, 0, 0]])
    full, short = (token_ids, torch.tensor([4, 2])), (token_ids[1:, :2], torch.tensor([2]))
    with torch.inference_mode():
        assert torch.allclose(packed(*full)[1], packed(*short)[0], atol=1e-6)
        assert torch.allclose(padded(*short), packed(*short), atol=1e-6)
        assert not torch.allclose(padded(*full)[1], packed(*full)[1], atol=1e-4)


@pytest.mark.parametrize(("use_texts", "sizes"), [(True, (30, 172)), (False, (30000, 6400))])
def test_the_texts_are_the_own_ones_or_random(
    use_texts: bool, sizes: tuple[int, int], tiny_config: Callable[..., Config], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Work] = []
    monkeypatch.setattr(bench, "benchmark", lambda work, repeats: seen.append(work))
    bench.benchmark_config(tiny_config(), use_texts=use_texts, num_batches=3, repeats=1)
    assert (seen[0].vocab_size, len(seen[0].corpus), seen[0].num_batches) == (*sizes, 3)


def test_the_trainer_that_is_timed_begins_with_the_same_weights_each_time() -> None:
    work = work_of()
    weights = [work.trainer().model.project.weight.detach().numpy() for _ in range(2)]
    assert np.array_equal(*weights)
    assert not np.array_equal(weights[0], replace(work, config=load_config(None, [*SMALL, "seed=2"])).trainer()
                              .model.project.weight.detach().numpy())  # fmt: skip
