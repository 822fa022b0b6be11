"""Leaderboards: every run of a folder, in order, as rows that are JSON."""

import json
import math

import pytest

from aiornot import storage
from aiornot.config import InputError, TrainConfig
from aiornot.tuning import board
from aiornot.tuning.ledger import Ledger, Trial


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
    meaning = {"after": after, "data": "reduced", "budget": {"grace_period": 1}}
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
    assert set(board.RUN_COLUMNS) <= set(rows[0])


def test_the_stages_of_a_chain_follow_one_another(root):
    rows = board.stages(root, "zeta")
    assert [row["stage"] for row in rows] == ["zz_first", "mm_middle", "aa_last"]
    first, middle, last = rows
    assert (first["state"], first["trials"], first["ended"]) == ("unfinished", 7, 6)
    assert (middle["state"], middle["ended"], middle["best"]) == ("unfinished", 0, None)
    assert (last["state"], last["trials"], last["ended"]) == ("unfinished", 2, 1)
    assert first["warnings"] == ["lr: on the bound"] and first["data"] == "reduced"
    assert first["seconds"] == 2.0 * (1 + 16 + 16 + 4 + 2 + 0 + 2)
    assert set(board.STAGE_COLUMNS) <= set(first)


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


def test_a_lone_training_is_a_run_of_one_stage(root):
    (row,) = board.stages(root, "lone")
    assert (row["stage"], row["state"], row["trials"], row["ended"]) == (
        "train",
        "unfinished",
        1,
        0,
    )
    assert row["se"] is None
    (trial,) = board.trials(root, "lone", "train")
    assert (trial["trial"], trial["state"], trial["tick"]) == ("train-000", "running", 3)
    ledger = Ledger(f"{root}/lone")
    ledger.end(ledger.read()[0])
    assert board.stages(root, "lone")[0]["state"] == "finished"


def test_trials_are_ordered_by_rung_and_then_by_score(root):
    rows = board.trials(root, "zeta", "zz_first")
    assert [row["trial"][-1] for row in rows] == ["2", "1", "3", "0", "4", "5", "6"]
    assert [row["score"] for row in rows] == [0.98, 0.6, 0.7, 0.99, 0.0, None, None]
    assert set(board.TRIAL_COLUMNS) <= set(rows[0])


def test_a_trial_shows_what_varies_among_them(root):
    rows = board.trials(root, "zeta", "zz_first")
    assert board.varied(rows) == ("hflip", "lr")
    assert [board.texts(row, ("lr", "hflip")) for row in rows[:2]] == [
        ["0.001", "0.5"],
        ["0.0001", "0"],
    ]
    assert {row["trial"]: row["reason"] for row in rows}["explore-005"] == "OSError: no room"
    assert TrainConfig.from_dict(rows[0]["config"]) == TrainConfig(hflip=0.5)
    (row,) = board.trials(root, "zeta", "aa_last")
    assert row["origin"] == "from x" and board.varied([row]) == ()


def test_the_standard_error_is_that_of_the_validation_split(root):
    (row,) = board.trials(root, "zeta", "aa_last")
    assert row["se"] == pytest.approx(0.0078, abs=1e-4)
    stopped = board.trials(root, "zeta", "zz_first")[4]
    assert stopped["score"] == 0.0 and stopped["se"] is None


def test_all_rows_are_json(root):
    everything = [board.runs(root), board.stages(root, "zeta"), board.stages(root, "lone")]
    everything += [board.trials(root, "zeta", stage) for stage in ("zz_first", "aa_last")]
    everything += [board.trials(root, "zeta", "mm_middle"), board.trials(root, "lone", "train")]
    for rows in everything:
        assert pure(rows) == rows
    assert everything[-2] == []


def test_cells_are_read_by_people(root):
    row = board.stages(root, "zeta")[1]
    assert board.texts(row, board.STAGE_COLUMNS) == [
        *("mm_middle", "unfinished", "4", "0", "-", "-", "0", "reduced")
    ]
    row = board.trials(root, "zeta", "zz_first")[0]
    assert board.texts(row, ("trial", "score", "seconds")) == ["explore-002", "0.9800", "32"]
    assert board.texts(board.runs(root)[2], ("run", "delivered")) == ["zeta", "yes"]


def test_an_unknown_run_is_a_sentence_with_the_known_ones(root):
    with pytest.raises(InputError, match="no run 'zata'; there are alpha, lone, zeta"):
        board.stages(root, "zata")
    with pytest.raises(InputError, match="no run 'zata'"):
        board.trials(root, "zata", "zz_first")
    with pytest.raises(InputError, match="no run 'notes'"):
        board.stages(root, "notes")


def test_an_unknown_stage_is_a_sentence_with_the_known_ones(root):
    with pytest.raises(InputError, match="has no stage 'first'; it has zz_first, mm_middle, aa_l"):
        board.trials(root, "zeta", "first")


@pytest.mark.parametrize("folder", ["empty", "absent", "notes"])
def test_a_folder_without_runs_is_a_sentence(tmp_path, folder):
    if folder != "absent":
        (tmp_path / folder).mkdir()
    with pytest.raises(InputError, match=r"no runs there; 'aiornot tune' and 'aiornot train'"):
        board.runs(str(tmp_path / folder))
    with pytest.raises(InputError, match="no runs there"):
        board.stages(str(tmp_path / folder), "zeta")
