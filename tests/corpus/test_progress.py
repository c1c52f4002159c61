import logging

import pytest

from megatron_miniplm.corpus import progress
from megatron_miniplm.corpus.progress import ByteProgress


def test_off_a_terminal_a_line_is_logged_once_an_interval(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    seconds = iter([0.0, 4.0, 10.0, 12.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(seconds))
    with caplog.at_level(logging.INFO), ByteProgress(80_000_000) as shown:
        for _ in range(3):
            shown.advance(20_000_000)
    assert caplog.messages == ["50.0% of 80.0 MB read, 4.0 MB/s"]
    assert capsys.readouterr().err == ""
