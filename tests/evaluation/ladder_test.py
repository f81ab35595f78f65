import json
import math

from kerasgpt.evaluation.ladder import (
    Rung,
    ladder_table,
    steps_that_do_not_rise,
    write_ladder,
)

RUNGS = [
    Rung("uniform", 8.0, 5.5452, 0, 0.0, 0.0, "x"),
    Rung("mle", math.inf, math.inf, 70, 5e6, 0.5, "hm", is_step=False),
    Rung("gpt", 2.25, 1.5596, 812_345, 1.25e13, 61.24, "To be"),
]


def test_a_table_has_a_row_a_model_and_published_figures_last():
    lines = ladder_table(RUNGS, [("theirs", 2.1, "a paper")]).splitlines()
    assert lines[2:] == [
        "| uniform | 8.000 | 5.545 | 0 | 0 | 0.0 |",
        "| (mle) | ∞ | ∞ | 70 | 5.0e+06 | 0.5 |",
        "| gpt | 2.250 | 1.560 | 812,345 | 1.2e+13 | 61.2 |",
        "| *theirs* | 2.100 | | | | a paper |",
    ]


def test_steps_that_do_not_rise_are_named():
    assert steps_that_do_not_rise(RUNGS) == []
    lower = Rung("rnn", 2.25, 1.5596, 1, 1.0, 1.0)
    assert steps_that_do_not_rise([*RUNGS, lower]) == ["rnn"]


def test_files_of_a_ladder(tmp_path):
    table = write_ladder(
        tmp_path, RUNGS, title="A text", references=[("theirs", 2.1, "p")]
    )
    text = (tmp_path / "ladder.md").read_text()
    assert text.startswith("# A text\n")
    assert table in text
    assert "### gpt\n\n```\nTo be\n```" in text
    assert (tmp_path / "ladder.png").stat().st_size > 1000
    # Standard JSON knows no infinity.
    saved = json.loads(
        (tmp_path / "ladder.json").read_text(), parse_constant=lambda _: 1 / 0
    )
    assert [rung["name"] for rung in saved["rungs"]] == [r.name for r in RUNGS]
    assert saved["rungs"][1]["bits_per_byte"] is None
