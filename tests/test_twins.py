"""The alarm for hyper-parameters that do not reach the training."""

import math

from aiornot.config import TrainConfig
from aiornot.tuning import twins
from aiornot.tuning.ledger import Ledger, Trial


def begun(number: int, **config: object) -> Trial:
    return Trial(id=f"t-{number}", number=number, params={}, config={"lr": 1e-3, **config})


def report(loss: float, tick: int = 1) -> dict[str, float]:
    return {"tick": tick, "score": 0.5, "train/loss": loss, "val/log_loss": 2 * loss}


def play(tmp_path, *reports: tuple[Trial, dict]) -> list[str]:
    said: list[str] = []
    ledger = Ledger(str(tmp_path), observers=[twins.Alarm([], said.append)])
    for trial, metrics in reports:
        ledger.tick(trial, metrics)
    return said


def test_equal_first_losses_of_different_configurations_raise_the_alarm(tmp_path):
    one, other = begun(0, label_smoothing=0.0), begun(1, label_smoothing=0.1)
    (said,) = play(tmp_path, (one, report(0.7)), (other, report(0.7)))
    assert said.startswith("t-1 and t-0 differ in label_smoothing, yet their first losses")


def test_one_bit_is_a_difference_and_later_ticks_do_not_count(tmp_path):
    one, other = begun(0, hflip=0.0), begun(1, hflip=0.5)
    close = math.nextafter(0.7, 1)
    ticks = [(one, report(0.7)), (other, report(close)), (one, report(0.6, 2))]
    assert play(tmp_path, *ticks, (other, report(0.6, 2))) == []


def test_equal_configurations_may_be_equal_and_diverged_ones_have_no_losses(tmp_path):
    diverged = {"tick": 1, "score": 0.0, "diverged": 1.0}
    same = [(begun(number), report(0.7)) for number in range(2)]
    assert play(tmp_path, *same, *[(begun(n, x=n), diverged) for n in (2, 3)]) == []


def test_a_resumed_stage_remembers_the_losses_of_before(tmp_path):
    before, said = begun(0, hflip=0.0), []
    before.add_tick(report(0.7))
    ledger = Ledger(str(tmp_path), observers=[twins.Alarm([before], said.append)])
    ledger.tick(begun(1, hflip=0.5), report(0.7))
    assert len(said) == 1


def test_what_a_switched_off_operation_would_take_is_no_difference(tmp_path):
    off = [begun(n, random_resized_crop=False, crop_scale=s) for n, s in ((0, 0.08), (1, 0.5))]
    assert play(tmp_path, *[(trial, report(0.7)) for trial in off]) == []
    on = [begun(n, random_resized_crop=True, crop_scale=s) for n, s in ((2, 0.08), (3, 0.5))]
    (said,) = play(tmp_path, *[(trial, report(0.6)) for trial in on])
    assert "differ in crop_scale" in said


def test_a_switch_and_what_it_switches_are_hyper_parameters():
    names = TrainConfig().to_dict()
    assert names.keys() >= {*twins.SWITCHES, *twins.SWITCHES.values()}
