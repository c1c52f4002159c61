import pytest

from megatron_miniplm.mcore.device_flags import DEVICE_FLAGS, Machine, given_flags, with_device_flags

ALL_ADDED = [part for flag in DEVICE_FLAGS for part in flag.added]


def with_cpu_flags(argv: list[str], machine: Machine = "cpu") -> tuple[list[str], list[str]]:
    return with_device_flags(argv, machine)


def test_nothing_given() -> None:
    completed, added = with_cpu_flags(["--num-layers", "2"])
    assert added == ALL_ADDED
    assert completed == ["--num-layers", "2", *ALL_ADDED]
    assert added[:4] == ["--transformer-impl", "local", "--distributed-backend", "gloo"]


@pytest.mark.parametrize("form", ["--x value", "--x=value", "--x"])
@pytest.mark.parametrize("name", [name for flag in DEVICE_FLAGS for name in flag.decided_by])
def test_what_the_user_decided_is_left_alone(name: str, form: str) -> None:
    argv = form.replace("--x", name).split()
    completed, added = with_cpu_flags(argv)
    assert completed[: len(argv)] == argv
    assert added == [part for flag in DEVICE_FLAGS if name not in flag.decided_by for part in flag.added]


def test_a_value_that_looks_like_a_flag_decides_nothing() -> None:
    assert with_cpu_flags(["num-workers", "4"])[1] == ALL_ADDED


def test_completing_twice_adds_nothing() -> None:
    completed, _ = with_cpu_flags([])
    assert with_cpu_flags(completed) == (completed, [])


def test_a_gpu_without_transformer_engine_keeps_its_compiled_kernels_and_nccl() -> None:
    _, added = with_cpu_flags(["--no-rope-fusion"], "local")
    assert added == [
        *("--transformer-impl", "local", "--no-gradient-accumulation-fusion"),
        *("--no-masked-softmax-fusion", "--no-persist-layer-norm"),
    ]


def test_every_flag_has_a_reason() -> None:
    assert all(flag.reason and flag.added[0].startswith("--") for flag in DEVICE_FLAGS)


def test_given_flags_know_both_spellings() -> None:
    assert given_flags(["--lr", "1", "--tokenizer-model=dir", "-h", "word"]) == {"--lr", "--tokenizer-model"}
