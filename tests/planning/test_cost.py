"""Stages by hand, and the paper's own figures."""

import pytest
from paper_pipeline import REFERENCE, TEACHER, methods_of, paper

from megatron_miniplm.errors import InputError
from megatron_miniplm.planning.cost import Hardware, Models, PipelineSettings, Work, peak_flops_of, pipeline_cost
from megatron_miniplm.planning.sequences import SequenceLengths


def test_teacher_scores_of_100_billion_tokens() -> None:
    models, settings = paper()
    (stage,) = [stage for stage in pipeline_cost(models, settings).once if stage.name == "score with the teacher"]
    assert stage.tokens == pytest.approx(100e9)
    # Between 2 N without embeddings (2.4e20) and 2 N with both matrices (3.7e20), by Kaplan et al. 2020.
    assert 2e20 < stage.flops < 3.6e20


def test_bytes_by_hand() -> None:
    models, _ = paper()
    settings = PipelineSettings(
        corpus=SequenceLengths.all_equal(1000 * 100, 100),
        reference_fraction=0.2,
        ratio=0.5,
        context_tokens=64,
        overlap_tokens=16,
    )
    cost = pipeline_cost(models, settings)
    index = 34 + 8  # an .idx without sequences: header, and the boundary 0
    found = {stage.name: stage.disk_bytes for stage in cost.once}
    assert found["preprocess"] == 4 * 100_000 + (index + 20 * 1000) + (index + 20 * 200) + (index + 20 * 800)
    assert found["select"] == index + 20 * 400 + 400 * (8 + 8 + 4)
    # 20 blocks of 41 sequences, 64 windows of tokens each: headers, digest, checksum, and its copy in the list
    assert found["score with the teacher"] == 8 * 800 + 20 * (128 + 128 + 16 + 4 + 4)
    assert cost.students[0].disk_bytes == 14 * 203_437_824
    assert cost.students[0].tokens == 400 * 100


def test_cached_logits_are_500_bytes_a_token_that_is_read() -> None:
    cached = methods_of("qwen-200m")["cached logits"]
    assert cached.disk_bytes == pytest.approx(50e9 * 500)


def test_a_proxy_spares_teacher_and_reference() -> None:
    models, settings = paper()
    full = pipeline_cost(models, settings)
    with_proxy = pipeline_cost(
        Models(teacher=TEACHER, reference=REFERENCE, students=models.students, proxy=REFERENCE),
        PipelineSettings(**{**vars(settings), "sample_fraction": 0.05}),
    )
    flops = {stage.name: stage.flops for stage in with_proxy.once}
    expected = {stage.name: stage.flops for stage in full.once}
    assert flops["score with the teacher"] == pytest.approx(0.05 * expected["score with the teacher"])
    # It makes no logits: what is left of the reference's pass, once over the pool, and thrice over the sample.
    layers = 100e9 * 1024 / 1025 * (REFERENCE.forward_flops_per_token(1024) - 2 * 512 * 151_936)
    assert flops["predict with the proxy"] == pytest.approx(layers)
    assert flops["fit the proxy"] == pytest.approx(3 * 0.05 * layers)
    assert with_proxy.flops_once < 0.1 * full.flops_once


def test_a_reference_that_is_there_is_not_trained() -> None:
    models, settings = paper()
    cost = pipeline_cost(models, PipelineSettings(**{**vars(settings), "reference_tokens": 0}))
    assert "train the reference" not in [stage.name for stage in cost.once]


def test_hours() -> None:
    hardware = Hardware(num_devices=4, peak_flops=1e12, training_utilisation=0.5, scoring_utilisation=0.25)
    assert hardware.device_hours(3.6e15, Work.TRAINING) == 2
    assert hardware.wall_hours(3.6e15, Work.SCORING) == 1
    assert hardware.device_hours(3.6e15, Work.TOOLS) == 0
    assert peak_flops_of("NVIDIA H100 80GB HBM3") == 989.4e12
    with pytest.raises(InputError, match=r"--gpu T4 is not known, expected one of H100, .*: or give --peak-flops"):
        peak_flops_of("T4")
