"""Leaderboards: rows that are JSON, and the tables, sentences and CSV that people read."""

import csv
import io
import json
import math
import random

import pytest
from conftest import run_verb

from aiornot import storage
from aiornot.config import InputError, TrainConfig
from aiornot.tuning import board, tables
from aiornot.tuning.ledger import Ledger, Trial
from aiornot.tuning.space import choice, distribution_to_json, loguniform, uniform


def make(number, scores, *, state, stage="explore", seconds=2.0, origin="sampled", **config):
    return Trial(
        id=f"{stage}-{number:03d}",
        number=number,
        state=state,
        origin=origin,
        reason="OSError: no room" if state == "failed" else "",
        params=config,
        config=TrainConfig(**config).to_dict(),
        ticks=[
            {"tick": tick, "score": score, "seconds": seconds}
            for tick, score in enumerate(scores, 1)
        ],
    )


def write(ledger, trials, *, num_trials=4, after=None, **record):
    budget = {"grace_period": 1, "reduction_factor": 4}
    meaning = {"after": after, "data": "reduced", "sampler": "random", "budget": budget}
    ledger.write_stage(
        {
            "meaning": meaning | record.pop("meaning", {}),
            "num_trials": num_trials,
            "num_positive": 250,
            "num_negative": 250,
            "warnings": [],
        }
        | record
    )
    for trial in trials:
        ledger._write(trial)


def trials(root, name, stage):
    return board.leaderboard(root, name, stage)["trials"]


@pytest.fixture
def root(tmp_path) -> str:
    """Two chains, a run of ``aiornot train``, and folders that are no runs."""
    explore = [
        make(0, [0.99], state="stopped", lr=2e-3),
        make(1, [0.6] * 16, state="finished", lr=1e-4),
        make(2, [0.98] * 16, state="finished", hflip=0.5),
        make(3, [0.7] * 4, state="stopped"),
        make(4, [0.95, 0.0], state="diverged", lr=1.0),
        make(5, [], state="failed"),
        make(6, [0.5, math.nan], state="running"),
    ]
    zeta = str(tmp_path / "zeta")
    write(Ledger(f"{zeta}/zz_first"), explore, num_trials=7, warnings=["lr: on the bound"])
    full = [make(0, [0.97] * 16, state="finished", stage="aa_last", origin="from x", epochs=9)]
    write(Ledger(f"{zeta}/aa_last"), full, num_trials=2, after="mm_middle")
    write(Ledger(f"{zeta}/mm_middle"), [], after="zz_first")
    (tmp_path / "zeta" / "wandb").mkdir()
    storage.write_text(f"{zeta}/bundle/bundle.json", "{}")
    write(Ledger(str(tmp_path / "alpha" / "explore")), [make(0, [], state="running")])
    trained = Ledger(str(tmp_path / "lone"))
    trained._write(make(0, [0.75] * 3, state="running", stage="train"))
    (tmp_path / "notes").mkdir()
    (tmp_path / "file.txt").write_text("x")
    return str(tmp_path)


def pure(rows):
    """Return rows after JSON; NaN is none."""
    return json.loads(json.dumps(rows, allow_nan=False))


def test_every_run_has_a_row_in_order_of_its_name(root):
    rows = board.runs(root)
    assert [row["run"] for row in rows] == ["alpha", "lone", "zeta"]
    assert [(row["stages"], row["trials"], row["delivered"]) for row in rows] == [
        (1, 1, False),
        (1, 1, False),
        (3, 8, True),
    ]
    assert [row["best"] for row in rows] == [None, 0.75, 0.97]


def test_the_stages_of_a_chain_follow_one_another(root):
    rows = board.stages(root, "zeta")
    assert [row["stage"] for row in rows] == ["zz_first", "mm_middle", "aa_last"]
    first, middle, last = rows
    assert (first["state"], first["trials"], first["ended"]) == ("unfinished", 7, 6)
    assert (middle["state"], middle["ended"], middle["best"]) == ("unfinished", 0, None)
    assert (last["state"], last["trials"], last["ended"]) == ("unfinished", 2, 1)
    assert first["warnings"] == ["lr: on the bound"] and first["data"] == "reduced"
    assert first["seconds"] == 2.0 * (1 + 16 + 16 + 4 + 2 + 0 + 2)


def test_the_best_of_a_stage_is_one_that_finished(root):
    """One that failed late is not it, nor one that was stopped at its first tick."""
    assert board.stages(root, "zeta")[0]["best"] == 0.98
    ledger = Ledger(f"{root}/alpha/explore")
    ledger._write(make(0, [0.5, 0.6], state="running"))
    ledger._write(make(1, [0.7], state="stopped"))
    ledger._write(make(2, [0.9] * 16, state="failed"))
    assert board.stages(root, "alpha")[0]["best"] == 0.7


def test_the_best_of_a_run_is_that_of_its_last_stage(root):
    """Scores of other data and other epochs are not compared."""
    assert board.runs(root)[2]["best"] == 0.97


def test_a_stage_is_finished_when_all_its_trials_ended(root):
    write(Ledger(f"{root}/zeta/aa_last"), [], num_trials=1, after="mm_middle")
    assert board.stages(root, "zeta")[-1]["state"] == "finished"


def test_a_stage_says_why_it_is_not_finished(root):
    def told():
        row = board.stages(root, "alpha")[0]
        return row["state"], row["reason"]

    ledger = Ledger(f"{root}/alpha/explore")
    assert told() == ("unfinished", "4 of 4 trials to go")
    ledger.write_stage(ledger.read_stage() | {"closed": "its share of the budget was spent"})
    assert told() == ("closed", "its share of the budget was spent, 4 of 4 trials to go")
    for number in range(4):
        ledger._write(make(number, [0.5], state="failed"))
    assert told() == ("unfinished", "no candidate finished")
    ledger._write(make(3, [0.5] * 16, state="finished"))
    assert told() == ("finished", "")


def test_a_lone_training_is_a_run_of_one_stage(root):
    (row,) = board.stages(root, "lone")
    assert (row["stage"], row["state"], row["trials"], row["ended"]) == (
        "train",
        "unfinished",
        1,
        0,
    )
    assert row["se"] is None
    (trial,) = trials(root, "lone", "train")
    assert (trial["trial"], trial["state"], trial["tick"]) == ("train-000", "running", 3)
    ledger = Ledger(f"{root}/lone")
    ledger.end(make(0, [0.75] * 16, state="running", stage="train"))
    assert board.stages(root, "lone")[0]["state"] == "finished"


def test_trials_are_ordered_by_rung_and_then_by_score(root):
    rows = trials(root, "zeta", "zz_first")
    assert [row["trial"][-1] for row in rows] == ["2", "1", "3", "0", "4", "5", "6"]
    assert [row["score"] for row in rows] == [0.98, 0.6, 0.7, 0.99, 0.0, None, None]


def test_a_trial_shows_what_varies_among_them(root):
    rows = trials(root, "zeta", "zz_first")
    (table,) = tables.of_leaderboard(board.leaderboard(root, "zeta", "zz_first"))
    assert table.columns[-2:] == ("hflip", "lr")
    assert [row[-2:] for row in table.rows[:2]] == [["0.5", "0.001"], ["0", "0.0001"]]
    assert {row["trial"]: row["reason"] for row in rows}["explore-005"] == "OSError: no room"
    assert TrainConfig.from_dict(rows[0]["config"]) == TrainConfig(hflip=0.5)
    (row,) = trials(root, "zeta", "aa_last")
    assert row["origin"] == "from x"
    (table,) = tables.of_leaderboard(board.leaderboard(root, "zeta", "aa_last"))
    told = tuple(name for name in tables.TRIAL_COLUMNS if name != "why")  # nobody has a reason
    assert table.columns == told and "all: epochs=9" in table.caption


def test_the_standard_error_is_that_of_the_validation_split(root):
    (row,) = trials(root, "zeta", "aa_last")
    assert row["se"] == pytest.approx(0.0078, abs=1e-4)
    stopped = trials(root, "zeta", "zz_first")[4]
    assert stopped["score"] == 0.0 and stopped["se"] is None


def test_all_rows_are_json(root):
    everything = [board.runs(root), board.stages(root, "zeta"), board.stages(root, "lone")]
    everything += [trials(root, "zeta", stage) for stage in ("zz_first", "aa_last")]
    everything += [trials(root, "zeta", "mm_middle"), trials(root, "lone", "train")]
    for rows in everything:
        assert pure(rows) == rows
    assert everything[-2] == []


def test_cells_are_read_by_people(root):
    stages = tables.of_stages("zeta", board.stages(root, "zeta"))
    assert stages.rows[0] == [
        *("zz_first", "unfinished: 1 of 7 trials to go", "0.9800", "+- 0.0064"),
        *("1 diverged, 1 failed, 2 finished, 1 running, 2 stopped", "82 s", "0 s", "reduced"),
    ]
    assert stages.rows[1] == [
        *("mm_middle", "unfinished: 4 of 4 trials to go", "-", "-", "-", "0 s", "0 s", "reduced")
    ]
    board_of = board.leaderboard(root, "zeta", "zz_first")
    (found,) = tables.of_leaderboard(board_of)
    assert found.rows[0][:-2] == [
        *("* explore-002", "finished", "16/16", "0.9800", "+- 0.0064", "", "32", "sampled")
    ]
    assert [row[0][0] for row in found.rows[1:]] == [" "] * 6
    runs = tables.of_runs("here", board.runs(root))
    assert runs.title == "runs in here" and runs.rows[2][0::6] == ["zeta", "yes"]


def test_trials_within_one_standard_error_of_the_best_are_marked(root):
    """.9800 has .0064: .9740 is within, .9730 is not, nor is what did not finish."""
    more = [
        make(10, [0.974] * 16, state="finished"),
        make(11, [0.973] * 16, state="finished"),
        make(12, [0.979] * 15, state="stopped"),
        make(13, [0.975] * 15 + [math.nan], state="finished"),
    ]
    for trial in more:
        Ledger(f"{root}/zeta/zz_first")._write(trial)
    found = board.leaderboard(root, "zeta", "zz_first")
    marked = [row["trial"] for row in found["trials"] if row["within_error"]]
    assert marked == ["explore-002", "explore-010"]
    assert "the order among these is noise" in tables.of_leaderboard(found)[0].caption
    for stage in ("mm_middle", "train"):
        other = board.leaderboard(root, *(("lone", stage) if stage == "train" else ("zeta", stage)))
        assert "noise" not in tables.of_leaderboard(other)[0].caption


def test_a_trial_says_why_it_stopped(root):
    """The cut comes from the ledger; where it does not, the reason is what was written."""
    ledger = Ledger(f"{root}/alpha/explore")
    ledger.write_stage(ledger.read_stage() | {"num_trials": 5})
    for number, score in enumerate([0.8, 0.9, 0.7]):
        trial = make(number, [], state="running")
        ledger.begin(trial)
        ledger.tick(trial, {"tick": 1, "score": score, "seconds": 1.0})
    ledger.end(trial)
    ledger.end(make(3, [0.6, 0.6], state="running"), stopped="the budget of the stage was spent")
    long = "OSError: [Errno 28] No space left on device: '" + "x" * 200
    ledger.end(make(4, [0.5], state="running"), error=f"{long}\nmore", traceback="Traceback ...")
    found = board.leaderboard(root, "alpha", "explore")
    (table,) = tables.of_leaderboard(found)
    why = {row[0].strip(): row[table.columns.index("why")] for row in table.rows}
    assert why["explore-002"] == "below the cut 0.8750 at rung 1"
    assert why["explore-003"] == "the budget of the stage was spent, at tick 2"
    assert why["explore-004"].startswith("OSError") and why["explore-004"].endswith("...")
    assert len(why["explore-004"]) == tables.LONGEST and why["explore-000"] == ""
    assert "--json" in table.below[-1]
    rows = {row["trial"]: row for row in found["trials"]}
    assert rows["explore-002"]["cut"] == pytest.approx(0.875)
    assert rows["explore-004"]["traceback"] == "Traceback ..."
    assert rows["explore-004"]["reason"].startswith(long)


def test_spend_is_the_trials_time_and_that_on_the_wall(root):
    trial = make(0, [0.5] * 3, state="finished", seconds=1800.0)
    for number, tick in enumerate(trial.ticks):
        tick["time"] = 1000.0 + 2000.0 * number
    trial.started = 900.0
    ledger = Ledger(f"{root}/alpha/explore")
    ledger._write(trial)
    (row,) = board.stages(root, "alpha")
    assert (row["seconds"], row["wall_seconds"]) == (5400.0, 4100.0)
    table = tables.of_stages("alpha", [row])
    assert table.rows[0][5:7] == ["90 min", "68 min"] and "device time" not in table.columns
    # Where the driver wrote down its sessions, the night between them is not counted.
    ledger.write_stage(
        ledger.read_stage() | {"sessions": [[0.0, 100.0], [900.0, 1000.0]], "num_workers": 4}
    )
    (row,) = board.stages(root, "alpha")
    assert (row["wall_seconds"], row["device_seconds"]) == (200.0, 4 * 5400.0)
    table = tables.of_stages("alpha", [row])
    assert dict(zip(table.columns, table.rows[0], strict=True))["device time"] == "6.0 h"
    run = board.runs(root)[0]
    assert (run["seconds"], run["wall_seconds"]) == (5400.0, 200.0)


SPACE = {"lr": loguniform(1e-4, 1e-2), "drop_rate": uniform(0.0, 0.5), "hflip": choice(0.0, 0.5)}


def searched(count):
    """Return trials of which the best have the largest learning rates."""
    draw = random.Random(0)
    trials = []
    for number in range(count):
        params = {
            "lr": 10 ** draw.uniform(-4, -2.1) if number > 3 else 1e-2,
            "drop_rate": draw.uniform(0.0, 0.5),
            "hflip": draw.choice([0.0, 0.5]),
        }
        score = 0.9 + math.log10(params["lr"]) / 10 + draw.gauss(0, 0.001)
        trials.append(make(number, [score] * 16, state="finished", **params))
    return trials


@pytest.fixture
def parent_and_child(tmp_path) -> str:
    space = {name: distribution_to_json(domain) for name, domain in SPACE.items()}
    marked = {name: f"narrowed {text}" for name, text in space.items()}
    parent, (lost, *rest) = searched(20), searched(20)[:5]
    write(Ledger(f"{tmp_path}/deep/wide"), parent, space=space, meaning={"space": space})
    again = [
        make(k, [t.score] * 16, state="finished", stage="few", origin=f"from {t.id}", **t.params)
        for k, t in enumerate(rest)
    ]
    again.append(make(9, [0.1] * 16, state="finished", stage="few", origin=f"from {lost.id}"))
    narrow = space | {"lr": distribution_to_json(loguniform(1e-3, 5e-3))}
    write(
        Ledger(f"{tmp_path}/deep/few"),
        again,
        after="wide",
        space=narrow,
        meaning={"space": marked},
    )
    return str(tmp_path)


def test_below_a_leaderboard_stand_importances_bounds_and_agreement(parent_and_child):
    found = board.leaderboard(parent_and_child, "deep", "wide")
    assert found["importances"]["rows"][0]["parameter"] == "lr"
    assert found["bounds"][0].startswith("lr: 4 of the 5 best values sit on the upper bound 0.01")
    (agreement,) = found["agreements"]
    assert (agreement["child"], agreement["num_pairs"]) == ("few", 5)
    trials, importances = tables.of_leaderboard(found)
    assert importances.rows[0][0] == "lr" and not trials.below
    told = "\n".join(importances.below)
    assert "best 7 of 20 trials at tick 1" in told
    assert "lr: 4 of the 5 best values sit on the upper bound" in told
    assert "rank agreement: wide ranks for few: Spearman" in told
    assert pure(found) == found


def test_a_bound_is_that_of_the_stage_file_and_not_that_of_a_narrowed_range(parent_and_child):
    found = board.leaderboard(parent_and_child, "deep", "few")
    assert found["bounds"] and all("0.01" in sentence for sentence in found["bounds"])
    assert found["agreements"] == []
    assert "need 10 trials" in found["importances"]["note"]


def test_a_stage_that_searches_nothing_has_no_importances(root):
    assert board.leaderboard(root, "lone", "train")["importances"] is None


def test_csv_has_every_field_of_every_trial(root, tmp_path):
    file = tmp_path / "new" / "board.csv"
    tables.write_csv(str(file), trials(root, "zeta", "zz_first"))
    rows = list(csv.DictReader(io.StringIO(file.read_text())))
    assert [row["trial"][-1] for row in rows] == ["2", "1", "3", "0", "4", "5", "6"]
    assert set(rows[0]) == {*tables.CSV_COLUMNS, *TrainConfig().to_dict()}
    assert float(rows[0]["score"]) == 0.98 and rows[5]["score"] == "" == rows[0]["weights"]
    assert float(rows[1]["lr"]) == 1e-4 and rows[0]["within_error"] == "True"
    assert tables.to_csv([]) == ",".join(tables.CSV_COLUMNS) + "\n"
    with pytest.raises(InputError, match="folder of that name"):
        tables.write_csv(str(tmp_path / "new"), [])


def show(root, *arguments):
    return run_verb("show", *arguments, "--storage", root)


def test_the_verb_shows_runs_stages_and_a_leaderboard(parent_and_child):
    assert "deep" in show(parent_and_child).out
    stages = show(parent_and_child, "deep").out
    assert "wide" in stages and "+- " in stages and "explore-003" not in stages
    assert "explore-003" in show(parent_and_child, "deep", "--trials").out
    text = show(parent_and_child, "deep", "wide").out
    assert "* explore-" in text and "importances" in text and "at a bound: lr" in text
    found = json.loads(show(parent_and_child, "deep", "wide", "--json").out)
    assert found == pure(board.leaderboard(parent_and_child, "deep", "wide"))
    both = json.loads(show(parent_and_child, "deep", "--trials", "--json").out)
    assert [one["stage"]["stage"] for one in both] == ["wide", "few"]


def test_the_verb_writes_csv_and_figures(parent_and_child, tmp_path):
    table = show(parent_and_child, "deep", "wide", "--csv", "-")
    assert table.out.startswith("trial,state,") and len(table.out.splitlines()) == 21
    folder, file = tmp_path / "figures", tmp_path / "board.csv"
    drawn = show(parent_and_child, "deep", "wide", "--plot", str(folder), "--csv", str(file))
    assert file.read_text() == table.out
    names = ("curves", "parallel", "slices", "importances")
    assert drawn.out.splitlines() == [str(file), *(f"{folder}/{name}.png" for name in names)]
    both = show(parent_and_child, "deep", "wide", "--csv", str(file), "--json")
    assert json.loads(both.out)["trials"] and str(file) in both.err


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("deep", "--csv", "x.csv"), "--csv and --plot show one stage"),
        (("--plot", "x"), "--csv and --plot show one stage"),
        (("deep", "wide", "--csv", "-", "--json"), "--csv - takes stdout"),
        (("deep", "wide", "--csv", "."), "folder of that name"),
        (("deep", "wide", "--plot", "s3://bucket/x"), "give a local folder"),
    ],
)
def test_what_show_cannot_do_is_one_sentence(parent_and_child, arguments, said):
    result = show(parent_and_child, *arguments)
    assert result.code == 2 and said in result.err and result.err.count("\n") == 1
    assert result.out == ""


def test_an_unknown_run_is_a_sentence_with_the_known_ones(root):
    with pytest.raises(InputError, match="no run 'zata'; there are alpha, lone, zeta"):
        board.stages(root, "zata")
    with pytest.raises(InputError, match="no run 'zata'"):
        trials(root, "zata", "zz_first")
    with pytest.raises(InputError, match="no run 'notes'"):
        board.stages(root, "notes")


def test_an_unknown_stage_is_a_sentence_with_the_known_ones(root):
    with pytest.raises(InputError, match="has no stage 'first'; it has zz_first, mm_middle, aa_l"):
        trials(root, "zeta", "first")


@pytest.mark.parametrize("folder", ["empty", "absent", "notes"])
def test_a_folder_without_runs_is_a_sentence(tmp_path, folder):
    if folder != "absent":
        (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=r"no runs there; 'aiornot tune' and 'aiornot train'"):
        board.runs(str(tmp_path / folder))
    with pytest.raises(InputError, match="no runs there"):
        board.stages(str(tmp_path / folder), "zeta")
