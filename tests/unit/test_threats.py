"""Names of banks carry the threat model, captions are made from banks, and rows have one order."""

from dataclasses import replace
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from helpers.examples import BANK, EVALUATION, EXAMPLES, MANIFEST
from rdi import threats
from rdi.errors import UserError
from rdi.folders import RunFolder
from rdi.records import WorstRecord, write
from rdi.report import eps_curves, tables
from rdi.runs.identity import identity
from rdi.runs.search import entry
from rdi.searching import Trial
from rdi.threats import ThreatModel, bank_name, display_name, in_order, pixels, strength, without_threat

CONF = Path(__file__).resolve().parents[2] / "conf"
OWN = ThreatModel(0.1)
RUN = replace(MANIFEST, config={"threat": {"eps": 0.1}, "backbone": {}}, choices={"backbone": "smallcnn"})
WORST = next(record for record in EXAMPLES if isinstance(record, WorstRecord))


@pytest.mark.parametrize(
    ("eps", "thresholds", "label", "name"),
    [
        (0.1, None, None, "average"),
        (0.1 + 1e-12, None, None, "average"),
        (0.3, None, None, "average@eps0.3"),
        (8 / 255, None, None, "average@eps0.0313725"),
        (0, None, None, "average@eps0"),
        (-0.0, None, None, "average@eps0"),
        (0.1, "entropy", None, "average@entropy"),
        (0.3, "budget-0a1b2c", "long", "average@budget-0a1b2c@eps0.3@long"),
    ],
)
def test_a_name_carries_what_sets_a_bank_apart(eps, thresholds, label, name):
    assert bank_name("average", ThreatModel(eps), OWN, thresholds, label) == name


@pytest.mark.parametrize("label", ["", "a/b", "..", "@x", "eps0.3", "a b", ".x"])
def test_a_label_is_one_word_that_no_threat_model_has(label):
    with pytest.raises(UserError, match="label must be a word"):
        bank_name("average", OWN, OWN, None, label)


@pytest.mark.parametrize("name", ["clean", "worst"])
def test_names_with_a_meaning_are_taken(name):
    with pytest.raises(UserError, match="an attack cannot be called"):
        bank_name(name, OWN, OWN)


def test_names_in_tables_leave_out_what_the_table_says():
    assert display_name("soft@entropy@eps0.3", "entropy") == "soft@eps0.3"
    assert display_name("soft@entropy", "margin") == "soft@entropy"
    aimed, unaimed = {"policy": "thresholds 0.1"}, {"eps": 0.1}
    assert display_name("average@margin", "margin", unaimed) == "average@margin", (
        "a label, chosen before such thresholds"
    )
    assert display_name("soft@margin@eps0.3", "margin", aimed) == "soft@eps0.3"
    assert display_name("soft@entropy@margin", "margin", aimed) == "soft@entropy@margin"
    assert without_threat("soft@entropy@eps0.3@long") == without_threat("soft@entropy@long") == "soft@entropy@long"
    assert without_threat("soft@eps1e-05") == "soft"
    assert without_threat("soft@epsilon") == "soft@epsilon", "thresholds may be called anything"


def test_rows_have_one_order_whatever_came_first():
    rows = [
        *("clean", "single_exit0", "single_exit2", "single_exit10", "average", "average@long", "max_avg"),
        *("soft@entropy", "soft@margin", "square", "autoattack@entropy", "mine", "zebra"),
        *("average@eps0.05", "max_avg@eps0.05", "average@eps0.2", "mine@eps0.2", "average@eps1"),
    ]
    assert in_order(reversed(rows)) == in_order(sorted(rows)) == rows


def test_what_was_made_for_the_thresholds_of_a_table_stands_before_what_was_made_for_others():
    names = ["clean", "soft@budget", "soft@entropy", "soft@risk"]
    assert in_order(names, "risk") == ["clean", "soft@risk", "soft@budget", "soft@entropy"]
    assert in_order(names) == names


@pytest.mark.parametrize("path", sorted((CONF / "suite").glob("*.yaml")), ids=lambda path: path.stem)
def test_rows_follow_the_suites(path):
    entries = [next(iter(one)) for one in OmegaConf.load(path).defaults if not isinstance(one, str)]
    names = [entry.partition("@")[2] for entry in entries]
    assert set(names) <= set(threats.ORDER)
    assert in_order(names) == names


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.3, "0.3"),
        (0.025, "0.025"),
        (8 / 255, "8/255"),
        (2 / 255, "2/255"),
        (0.0313725, "8/255"),
        (0.031373, "0.031373"),
        (0.1234567, "0.123457"),
        (10000, "10,000"),
    ],
)
def test_pixel_distances_are_written_as_people_write_them(value, text):
    assert pixels(value) == text


def bank(attack, eps=None, samples=4, **settings):
    found = {} if eps is None else {"attack": "Average", "eps": eps, **settings}
    return replace(BANK, attack=attack, samples=samples, settings=found)


def test_a_caption_says_what_the_banks_say_and_not_what_the_run_was_trained_for():
    clean = bank("clean", samples=400)
    made = [clean, bank("average@eps0.3", 0.3, 40, steps=20, step_size=0.025), bank("square@eps0.3", 0.3, 40)]
    assert threats.caption(RUN, made) == (
        "smallcnn on digits, 400 clean test images, 40 attacked, L-infinity eps 0.3, 20 steps of 0.025, seed 0"
    )
    assert threats.caption(RUN, [clean]) == "smallcnn on digits, 400 clean test images, no attack, seed 0"


def test_several_threat_models_are_never_one_line_without_a_word():
    made = [{"eps": 0.1, "steps": 20}, {"eps": 0.3, "steps": 100}, {}]
    assert strength(made) == "2 threat models: L-infinity eps 0.1 and L-infinity eps 0.3, 20 to 100 steps"


def test_the_threat_model_to_compare_under_is_the_own_one_the_only_one_or_asked_for():
    a, b, c = ThreatModel(0.05), OWN, ThreatModel(0.3)
    assert threats.choose([a, b, c], OWN, None, "runs/x") == b
    assert threats.choose([c], OWN, None, "runs/x") == c
    assert threats.choose([a, c], OWN, c, "runs/x") == c
    with pytest.raises(UserError, match=r"attacked at eps 0.05, 0.3 and not at its own 0.1: .*threat.eps="):
        threats.choose([a, c], OWN, None, "runs/x")
    with pytest.raises(UserError, match=r"rdi attack run=runs/x threat.eps=0.2`"):
        threats.choose([a, c], OWN, ThreatModel(0.2), "runs/x")


def test_accuracy_against_eps_starts_at_the_clean_images():
    clean = replace(EVALUATION, attack="clean", settings={}, accuracy=0.9)
    weak = replace(EVALUATION, settings={"eps": 0.1}, accuracy=0.6)
    strong = replace(EVALUATION, attack="average@eps0.3", settings={"eps": 0.3}, accuracy=0.2)
    other = replace(EVALUATION, attack="main@eps0.3", settings={"eps": 0.3}, accuracy=0.3)
    worst = [replace(WORST, eps=0.1, accuracy=0.6), replace(WORST, eps=0.3, accuracy=0.1)]
    records = [clean, strong, other, weak]
    assert eps_curves.curves(records, worst) == {
        "main": {0.0: 0.9, 0.3: 0.3},
        "average": {0.0: 0.9, 0.1: 0.6, 0.3: 0.2},
        "worst": {0.0: 0.9, 0.1: 0.6, 0.3: 0.1},
    }
    headers, rows = eps_curves.table(records, worst)
    assert headers == ["attack", "eps 0", "eps 0.1", "eps 0.3"]
    assert rows[0] == ["main", "90.0", "-", "30.0"]


def test_worst_cases_over_different_attacks_are_not_compared_without_a_word():
    at = replace(WORST, eps=0.1, attacks=("average", "main"))
    further = replace(WORST, eps=0.3, attacks=("main@eps0.3", "average@eps0.3"))
    assert eps_curves.note([at, further]) == ""
    assert eps_curves.note([at]) == eps_curves.note([]) == ""
    fewer = replace(further, attacks=("average@eps0.3",))
    assert eps_curves.note([fewer, at]) == (
        "The worst cases are over different attacks, so they do not compare from eps to eps. "
        "Eps 0.1: main, average; 0.3: average."
    )


def test_the_worst_case_says_whom_its_attacks_were_made_for():
    assert tables.worst_name(WORST) == "worst of 2"
    several = replace(WORST, attacks=("average", "soft@entropy", "soft@margin"), others=("soft@margin",))
    assert tables.worst_name(several) == "worst of 2 + 1 made for other thresholds"


def test_the_worst_case_says_what_it_leaves_out():
    assert tables.excluded(WORST) == tables.excluded(None) == ""
    one = replace(WORST, samples=1000, fewer=("soft@entropy", "square"), threshold="entropy")
    assert tables.excluded(one) == "worst of 2 is on 1,000 images; without soft, square, made of fewer"
    counted = replace(one, common_samples=1, common_accuracy=0.0)
    assert tables.excluded(counted) == (f"{tables.excluded(one)}: all of them together leave 0.0 % of 1 common image")


def test_facts_of_a_fit_are_one_line_with_a_colon_before_a_sentence():
    facts = {"not certified": "these data certify no early exit", "alpha": 0.05, "data": "clean"}
    assert tables.facts(facts) == "not certified: these data certify no early exit; alpha 0.05; data clean"


def test_the_record_of_a_trial_is_that_of_its_policy(tmp_path):
    folder = RunFolder(tmp_path / "run")
    write(folder.manifest, MANIFEST)
    for policy, eps in (("entropy", 0.2), ("margin", 0.1)):
        write(folder.worst(policy, "validation"), replace(WORST, threshold=policy, eps=eps, split="validation"))
        for attack in WORST.attacks:
            made = replace(EVALUATION, attack=attack, threshold=policy, settings={"eps": eps})
            write(folder.evaluation(policy, "validation", attack), made)
    trial = Trial(
        number=0,
        params={},
        state="complete",
        values=(WORST.accuracy,),  # both records have this accuracy
        run=str(folder.path),
        reason="",
        seconds=None,
        split="validation",
        policy="margin",
    )
    found = entry(trial, tmp_path)
    assert found.worst[0].threshold == "margin"
    assert found.strength == "L-infinity eps 0.1"
    assert entry(replace(trial, policy="gone"), tmp_path).worst is None


def test_another_norm_is_named_wherever_the_threat_model_is():
    l2, own = ThreatModel(128 / 255, "l2"), ThreatModel(8 / 255)
    assert bank_name("soft", l2, own, "entropy", "long") == "soft@entropy@l2eps0.501961@long"
    assert bank_name("soft", l2, l2) == "soft"
    assert bank_name("soft", own, l2) == "soft@eps0.0313725"
    assert without_threat("soft@entropy@l2eps0.501961@long") == "soft@entropy@long"
    assert ThreatModel.read(l2.word) == l2
    assert ThreatModel.read("l2run") is None
    assert (str(l2), l2.size, own.size) == ("L2 eps 128/255", "L2 128/255", "8/255")
    assert l2.options(own) == "threat.norm=l2 threat.eps=0.501961 threat.step_size=..."
    assert own.options(l2) == "threat.norm=linf threat.eps=0.0313725 threat.step_size=..."
    assert l2.options(l2) == "threat.eps=0.501961"
    settings = {"attack": "Average", "eps": 0.5, "norm": "l2", "steps": 20}
    assert strength([settings]) == "L2 eps 0.5, 20 steps"
    assert threats.threat({"eps": 0.5}) == ThreatModel(0.5), "a bank that names no norm is of L-infinity"
    assert len({ThreatModel(0.5), ThreatModel(0.5, "l2"), ThreatModel(0.5, "l1")}) == 3
    names = ["clean", "average", "average@eps0.2", "average@l2eps0.1", "average@l1eps0.1"]
    assert in_order(reversed(names)) == names
    with pytest.raises(UserError, match="choose another word"):
        bank_name("average", own, own, None, "l2eps0.5")


def test_a_radius_is_of_the_norm_that_it_was_given_in():
    own = ThreatModel(8 / 255)
    assert threats.asked(None, None, own) is None
    assert threats.asked(0.1, None, own) == ThreatModel(0.1)
    assert threats.asked(2.0, "l2", own) == ThreatModel(2.0, "l2")
    assert threats.asked(2.0, None, ThreatModel(0.5, "l2")) == ThreatModel(2.0, "l2")
    with pytest.raises(UserError, match="norm=l2 needs a radius in that norm, eps 8/255 is none"):
        threats.asked(None, "l2", own)
    with pytest.raises(UserError, match=r"threat.eps must be in \[0, 1\]"):
        threats.asked(2.0, None, own)


def test_runs_of_before_there_were_norms_keep_their_identity():
    old = {"seed": 0, "data": {"name": "digits"}, "threat": {"eps": 0.1}, "attack": {"eps": 0.1, "steps": 2}}
    new = {**old, "threat": {"eps": 0.1, "norm": "linf"}, "attack": {"eps": 0.1, "norm": "linf", "steps": 2}}
    assert identity(old) == identity(new)
    assert identity(old) != identity({**old, "threat": {"eps": 0.1, "norm": "l2"}})
