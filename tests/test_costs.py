"""The plugin that tells where the time of a test run went, and its budget."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
from cost_budget import WHOLE_RUN, new_budget, overruns, read_budget, write_budget
from cost_meter import OVERHEAD, CostMeter, add_cpu_seconds

pytest_plugins = ("pytester",)

BURN = "import time\nwhile time.process_time() < 0.5: pass"


def run_with_costs(pytester: pytest.Pytester, *options: str) -> pytest.RunResult:
    """An inner pytest in this process, with the plugin that the outer one has too."""
    return pytester.runpytest_inprocess("-p", "cost_plugin", "-p", "no:hypothesispytest", *options)


def costs_of(pytester: pytest.Pytester, *options: str) -> dict[str, float]:
    """CPU seconds per entry of an inner run, as its budget file says."""
    result = run_with_costs(pytester, "--write-costs", "costs.tsv", *options)
    assert result.ret == 0
    return read_budget(pytester.path / "costs.tsv")


def budget_file(pytester: pytest.Pytester, **cpu_seconds: float) -> Path:
    path = pytester.path / "costs.tsv"
    write_budget(path, {WHOLE_RUN: 1000.0, **{f"test_it.py::test_{name}": s for name, s in cpu_seconds.items()}})
    return path


def test_cpu_seconds_of_this_process_and_of_its_children_are_booked() -> None:
    meter = CostMeter()
    meter.enter("own")
    end = time.process_time() + 0.2
    while time.process_time() < end:
        pass
    meter.leave("own")
    meter.enter("child")
    subprocess.run([sys.executable, "-S", "-c", BURN], check=True)
    meter.leave("child")
    costs = meter.costs()
    assert 0.2 <= costs["own"].cpu_seconds < 0.5 <= costs["child"].cpu_seconds
    assert costs["child"].wall_seconds >= 0.5


def test_what_is_entered_in_between_costs_the_outer_name_nothing() -> None:
    meter = CostMeter()
    meter.enter("outer")
    meter.add_cpu_seconds(100)
    meter.enter("inner")
    meter.add_cpu_seconds(1000)
    meter.leave("inner")
    meter.add_cpu_seconds(10)
    meter.leave("outer")
    costs = {name: round(cost.cpu_seconds, -1) for name, cost in meter.costs().items() if name != OVERHEAD}
    assert costs == {"outer": 110, "inner": 1000}


def test_cpu_seconds_of_another_process_need_no_plugin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("cost_meter._active", [])
    add_cpu_seconds(5.0)


SHARED_FIXTURE = """
    import pytest
    from cost_meter import add_cpu_seconds

    @pytest.fixture(scope="session", params=["small", "large"])
    def corpus(request):
        add_cpu_seconds(30)
        yield
        add_cpu_seconds(300)
"""


def test_a_shared_fixture_is_an_entry_of_its_own_whoever_needs_it_first(pytester: pytest.Pytester) -> None:
    pytester.makeconftest(SHARED_FIXTURE)
    pytester.makepyfile(
        test_it="""
        import pytest
        from cost_meter import add_cpu_seconds

        @pytest.fixture
        def own(corpus):
            add_cpu_seconds(2)

        def test_first(corpus): add_cpu_seconds(7)
        def test_second(own): pass
        """
    )
    costs = {name: round(seconds) for name, seconds in costs_of(pytester).items()}
    assert costs["test_it.py::test_first[small]"] == costs["test_it.py::test_first[large]"] == 7
    assert costs["test_it.py::test_second[small]"] == 2
    fixtures = {name: seconds for name, seconds in costs.items() if "::corpus" in name}
    assert sorted(fixtures.values()) == [330, 330]
    without_the_first = costs_of(pytester, "-k", "second")
    assert {name: round(without_the_first[name]) for name in fixtures} == fixtures


def test_a_fixture_that_fails_leaves_the_books_in_order(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest

        @pytest.fixture(scope="module")
        def broken(): raise OSError

        def test_broken(broken): pass
        def test_other(): pass
        """
    )
    result = run_with_costs(pytester, "--slowest", "9")
    result.assert_outcomes(errors=1, passed=1)
    result.stdout.fnmatch_lines(["*test_it.py::broken"])


def test_the_slowest_are_printed_with_sums_by_package(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(
        test_it="""
        import pytest
        from cost_meter import add_cpu_seconds

        @pytest.mark.parametrize("seconds", [100, 300, 200])
        def test_costs(seconds): add_cpu_seconds(seconds)
        """
    )
    result = run_with_costs(pytester, "--slowest", "2")
    result.stdout.fnmatch_lines(
        ["*slowest 2 by CPU seconds*", "*300.? *costs?300?", "*200.? *costs?200?", "*costs by package*"]
    )
    result.stdout.re_match_lines([r".* 60\d\.\d  test_it\.py", r".* \(whole run\)"])
    assert "CPU seconds" not in run_with_costs(pytester).stdout.str()


TWO_TESTS = """
    import pytest
    from cost_meter import add_cpu_seconds

    def test_small(): add_cpu_seconds(8)
    def test_large(): add_cpu_seconds(100)
"""


@pytest.mark.parametrize(
    ("small", "large", "over"),
    [
        (8, 100, ""),
        (2, 100, "test_small"),  # by 6 s, four times its budget
        (4, 100, ""),  # twice its budget, but by 4 s only
        (8, 60, "test_large"),  # by 40 s, more than a half
        (8, 80, ""),  # by 20 s, but by a quarter only
    ],
)
def test_one_test_over_budget_fails_the_run(pytester: pytest.Pytester, small: float, large: float, over: str) -> None:
    pytester.makepyfile(test_it=TWO_TESTS)
    path = budget_file(pytester, small=small, large=large)
    result = run_with_costs(pytester, "--costs", str(path))
    assert result.ret == (1 if over else 0)
    assert (f"{over}: " in result.stdout.str()) if over else ("CPU seconds, budget" not in result.stdout.str())


def test_the_whole_over_budget_fails_the_run_and_new_tests_count_towards_it_only(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TWO_TESTS)
    path = budget_file(pytester, small=8)
    assert run_with_costs(pytester, "--costs", str(path)).ret == 0
    write_budget(path, {WHOLE_RUN: 85.0, "test_it.py::test_small": 8.0})
    result = run_with_costs(pytester, "--costs", str(path))
    assert result.ret == 1
    result.stdout.fnmatch_lines([f"{WHOLE_RUN}: *budget 85.0"])


@pytest.mark.parametrize(("found", "over"), [(120.0, False), (121.0, True)])
def test_the_whole_may_grow_by_a_fifth(found: float, over: bool) -> None:
    assert bool(overruns({WHOLE_RUN: 100.0}, {"new": found})) is over


def test_a_run_without_its_option_compares_nothing(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it=TWO_TESTS)
    budget_file(pytester, small=1)
    assert run_with_costs(pytester).ret == 0


def test_a_failed_run_writes_no_budget(pytester: pytest.Pytester) -> None:
    pytester.makepyfile(test_it="def test_it(): assert False")
    assert run_with_costs(pytester, "--write-costs", "costs.tsv").ret == 1
    assert not (pytester.path / "costs.tsv").exists()


@pytest.mark.parametrize("text", [None, "8.0 test_it.py::test_small\n", "8.0\ttest_it.py::test_small\n"])
def test_a_missing_or_malformed_budget_is_refused_before_the_tests_run(
    pytester: pytest.Pytester, text: str | None
) -> None:
    pytester.makepyfile(test_it=TWO_TESTS)
    path = pytester.path / "costs.tsv"
    if text is not None:
        path.write_text(text)
    result = run_with_costs(pytester, "--costs", str(path))
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*costs.tsv*"])


def test_a_budget_is_sorted_by_test_file_and_reads_back(tmp_path: Path) -> None:
    budget = {"tests/b.py::test_1": 1.0, "tests/a.py::test_2[x y]": 2.5, WHOLE_RUN: 3.5, "tests/a.py::test_10": 0.0}
    write_budget(tmp_path / "costs.tsv", budget)
    assert read_budget(tmp_path / "costs.tsv") == budget
    lines = (tmp_path / "costs.tsv").read_text().splitlines()
    assert [line.partition("\t")[2] for line in lines[1:]] == [WHOLE_RUN, *sorted(set(budget) - {WHOLE_RUN})]


def test_a_new_budget_differs_only_where_costs_do() -> None:
    old = {WHOLE_RUN: 9.0, "noise": 10.0, "tiny": 0.1, "grown": 10.0, "shrunk": 10.0, "removed": 5.0, "skipped": 7.0}
    measured = {"noise": 11.0, "tiny": 0.4, "grown": 13.0, "shrunk": 2.0, "new": 3.0, "skipped": 0.0, "no device": 0.0}
    assert new_budget(old, measured, skipped={"skipped", "no device"}) == {
        WHOLE_RUN: sum(measured.values()),
        **{"noise": 10.0, "tiny": 0.1, "grown": 13.0, "shrunk": 2.0, "new": 3.0, "skipped": 7.0},
    }
