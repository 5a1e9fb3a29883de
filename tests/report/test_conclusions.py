"""The sentences of a comparison claim what the intervals do, and no more."""

import json
from typing import Any

import pytest
from support.recorded import html

from steppe.records import load
from steppe.report.comparison.conclusions import missing_controls, on_front, remarks, sentence
from steppe.report.comparison.summary import rows
from steppe.report.formatting import seeds


def test_the_sentence_names_the_best_and_its_differences(folder: Any) -> None:
    values = {"plain": [90, 91, 92], "repeat-step": [94, 96, 96], "sadt-v1": [95, 95.5, 97]}
    text = sentence(folder.simple(values, {"sadt-v1": ["repeat-step"]}))
    assert text.startswith("Over 3 seeds, sadt-v1 has the highest mean test accuracy, 95.8 ± 1.0 %: +4.8 points [")
    assert "] compared with plain (significant). The difference of sadt-v1 to its control is +0.5 points [" in text
    assert "] compared with repeat-step (plain, its own gradient applied twice; not significant)." in text
    assert "With Holm's adjustment over the table's 3 differences, " in text


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            {"plain": [90, 91, 92], "sam": [93, 90, 95]},
            "with plain (not significant). The interval of sam minus plain is at 95 %.",
        ),
        ({"plain": [90], "sam": [99]}, "With one seed, sam has the highest mean test accuracy"),
        ({"plain": [90], "sam": [99]}, "+9.0 points compared with plain (one seed gives no interval)"),
        (
            {"plain": [95, 96, 97], "sam": [90, 91.1, 92]},
            "plain has the highest mean test accuracy, 96.0 ± 1.0 %. The interval of sam minus plain is at 95 %.",
        ),
        ({"plain": [95, 96, 97]}, "Over 3 seeds, plain reaches a test accuracy of 96.0 ± 1.0 %."),
    ],
)
def test_the_sentence_claims_a_difference_only_where_the_interval_excludes_0(folder: Any, values, text) -> None:
    assert text in sentence(folder.simple(values))


@pytest.mark.parametrize(
    ("values", "text"),
    [
        (
            # equal but for rounding: 28.1 + 28.3 and 28.2 + 28.2
            {"plain": [28.1, 28.3], "a": [28.2, 28.2], "b": [28, 28.3], "c": [28.3, 28.1]},
            "Over 2 seeds, plain, a and c share the highest mean test accuracy, 28.2 %: a 0.0 points [",
        ),
        (
            {"plain": [90], "a": [99], "b": [99]},
            "With one seed, a and b share the highest mean test accuracy, 99.0 %: a +9.0 points compared with "
            "plain (one seed gives no interval) and b +9.0 points compared with plain (one seed gives no",
        ),
        (
            {"plain": [90, 91, 92], "a": [95, 96], "b": [95.5, 95.5, 95.5]},
            "Over 2 to 3 seeds, a and b share the highest mean test accuracy, 95.5 %: ",
        ),
        ({"a": [90, 91], "b": [90, 91]}, "Over 2 seeds, a and b share the highest mean test accuracy, 90.5 %."),
    ],
)
def test_methods_of_equal_accuracy_are_all_named(folder: Any, values, text) -> None:
    assert sentence(folder.simple(values)).startswith(text)


def test_every_tied_method_is_compared_with_its_controls(folder: Any) -> None:
    values = {"plain": [90, 91], "two-step": [93, 95], "a": [97, 98], "b": [98, 97], "c": [80, 81]}
    text = sentence(folder.simple(values, {label: ["plain", "two-step"] for label in "abc"}))
    assert "The difference of a to its control is " in text and "The difference of b to its control is " in text
    assert "The difference of c" not in text


def test_what_has_no_interval_is_not_tested(folder: Any) -> None:
    # a differs from plain by the same amount in all seeds
    values = {"plain": [90, 91, 92], "a": [91, 92, 93], "b": [92, 95, 93], "c": [90, 93, 94]}
    text = sentence(folder.simple(values))
    assert "With Holm's adjustment over the table's 2 differences that have an interval, none is" in text
    folder.compare["methods"]["a"]["controls"] = ["plain"]
    assert sentence(rows(load(folder.write()))) == text


def test_above_all_controls_is_above_plain_too(folder: Any) -> None:
    values = {"plain": [90, 91, 92], "low": [80, 81, 82.5], "up": [95, 96.1, 97], "same": [90.5, 90.1, 92.2]}
    table = folder.simple(values, {"up": ["low", "plain"], "same": ["plain", "low"]})
    assert remarks(table)[1] == (
        "Of 2 methods with controls other than plain, up is significantly above plain and all of its controls."
    )
    del folder.compare["methods"]["plain"]
    folder.compare["runs"] = [run for run in folder.compare["runs"] if run["method"] != "plain"]
    assert remarks(rows(load(folder.write()))) == [
        "Of 2 methods with controls other than plain, up and same are significantly above all of its controls."
    ]


def test_without_a_finished_run_there_is_no_result(folder: Any) -> None:
    folder.method("plain")
    folder.run("plain", 0, None, "unfinished")
    table = rows(load(folder.write()))
    assert sentence(table) == "No run has finished yet."
    assert remarks(table) == ["1 run is unfinished; it is left out of the means."]


def test_remarks_name_what_is_significantly_above_plain_and_all_controls(folder: Any) -> None:
    values = {"plain": [90, 91, 92], "up": [95, 96.1, 97], "down": [80, 81.3, 82], "same": [90.5, 90.1, 92.2]}
    table = folder.simple(values, {"up": ["down"], "same": ["down", "up"]})
    above, controls = remarks(table)
    assert above == "Of 3 methods, up is significantly above plain and down is significantly below plain."
    assert controls == (
        "Of 2 methods with controls other than plain, up is significantly above plain and all of its controls."
    )
    folder.run("up", 3, None, "failed")
    folder.run("same", 3, None, "unfinished")
    notice = "1 run failed and 1 run is unfinished; they are left out of the means."
    assert remarks(rows(load(folder.write())))[-1] == notice


def test_runs_whose_metric_is_not_finite_are_counted_and_named(folder: Any) -> None:
    metric = {"name": "PLCC", "unit": "", "higher": True, "percent": False}
    folder.about["table"] = {"train": 300, "val": 50, "test": 80, "features": 10, "metric": metric}
    folder.method("plain"), folder.method("sam")
    for method in ("plain", "sam"):
        for seed in range(3):
            home = folder.run(method, seed, 0.5 + 0.1 * seed, dataset="table")
            if (method, seed) in (("sam", 1), ("sam", 2)):
                result = json.loads((home / "result.json").read_text())
                result["test"]["last"]["metric"] = None
                (home / "result.json").write_text(json.dumps(result))
    table = rows(load(folder.write()))
    assert [seeds(row) for row in table] == ["n=3", "n=1, 2 without a value"]
    notice = "2 runs ended with a test PLCC that is not finite; they are left out of the means."
    assert remarks(table)[-1] == notice
    page = html(folder.path, "version")
    assert notice in page and "2 without a value" in page


def test_the_front_in_words() -> None:
    text = on_front(["plain", "sam"], 4, "gradient evaluations")
    assert "accuracy and gradient evaluations: plain and sam. The other 2 methods are dominated" in text
    assert on_front(["plain"], 1, "seconds") == "Pareto front of mean test accuracy and seconds: plain."
    assert "dominated" not in on_front(["plain", "sam"], 2, "seconds")


def test_a_control_that_was_not_named_is_named_once(folder: Any) -> None:
    values = {"plain": [90, 91], "two-step": [93, 95], "a": [97, 98], "b": [98, 97]}
    folder.simple(values, {"a": ["repeat-step", "two-step"], "b": ["two-step"], "two-step": ["plain"]})
    hint = "Without a control of equal cost: a (repeat-step). Add to --methods: repeat-step."
    assert missing_controls(load(folder.path)) == hint
    assert f'<p class="data">{hint}</p>' in html(folder.path, "version")
    folder.compare["methods"]["b"]["controls"] = ["repeat-step", "<b>"]
    assert missing_controls(load(folder.write())).endswith("Add to --methods: repeat-step <b>.")
    folder.compare["methods"]["a"]["controls"] = folder.compare["methods"]["b"]["controls"] = []
    assert missing_controls(load(folder.write())) == ""
