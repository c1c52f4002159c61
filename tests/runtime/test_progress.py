import logging

import pytest

from megatron_miniplm.runtime import progress
from megatron_miniplm.runtime.progress import Progress, scaled


def test_off_a_terminal_a_line_is_logged_once_an_interval(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 4.0, 10.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO), Progress(80_000_000, "B") as shown:
        for _ in range(3):
            shown.advance(20_000_000)
    assert caplog.messages == ["50.0% of 80.0 MB, 4.0 MB/s, 10 s left"]
    assert capsys.readouterr().err == ""


def test_before_anything_is_done_no_time_is_foretold(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    seconds = iter([0.0, 11.0, 0.0, 11.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO):
        Progress(1500, " tokens").advance(0, note="loading")
        Progress(0, " tokens").advance(0)
    assert caplog.messages == ["0.0% of 1.5k tokens, loading", "100.0% of 0 tokens"]


def test_an_invisible_progress_says_nothing(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    seconds = iter([0.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO), Progress(10, " tokens", visible=False) as shown:
        shown.advance(5)
    assert shown.done == 5
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (950, "B", "950 B"),
        (12_345_678, "B", "12.3 MB"),
        (2e12, "B", "2.0 TB"),
        (7, " tokens", "7 tokens"),
        (1500, " tokens", "1.5k tokens"),
    ],
)
def test_scaled(value: float, unit: str, text: str) -> None:
    assert scaled(value, unit) == text
