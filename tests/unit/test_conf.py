"""Every file under conf/ composes, builds, and keeps the contract of its group; none is left out."""

import importlib
import inspect
import io
import json

import pytest
import torch
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.utils import get_class
from omegaconf import OmegaConf

from helpers.composing import CONF, composed
from rdi.attacks import Attack, Surrogate
from rdi.attacks.views import ViewAttack
from rdi.backbones import Backbone
from rdi.cli import COMMANDS, _schema
from rdi.cli._hydra import conf_dir
from rdi.compression import Compression, layer_weights
from rdi.config import KINDS as NODE_KINDS
from rdi.config import build, kind_of
from rdi.corruptions import Corruption
from rdi.data import Digits, Source
from rdi.defenses import Defense, Fast
from rdi.errors import UserError
from rdi.exits import MultiExitNet
from rdi.optim import Recipe
from rdi.ranks import whole_batch
from rdi.records import Costs
from rdi.runs.identity import UNCOMPRESSED, UNGATED, identity
from rdi.runs.networks import model
from rdi.thresholds import Calibration, Entropy, Policy, Rule, ShareRule
from rdi.thresholds.calibration import KINDS
from rdi.tracking import Wandb

FILES = sorted(path.relative_to(CONF).with_suffix("").as_posix() for path in CONF.rglob("*.yaml"))
MNIST, CIFAR = (1, 28, 28), (3, 32, 32)

# what a file leaves to the user, and other needs of a file by its name
MANDATORY = {
    "threshold/fixed": ["threshold.values=[0.5,0.6]"],
    "threshold/budget": ["threshold.share=0.7"],
    "attack/transfer": ["attack.surrogate=runs/static"],
    "data/arrays": ["data.file=images.npz"],
    "data/shards": ["data.train_shards=train.tar"],
    "backbone/timm": ["backbone.name=test_resnet", "exits=none"],
    "backbone/torchvision": ["backbone.name=resnet18", "exits=none"],
    "compression/channels": ["exits=none", "compression.widths=[20,20,40,40,100,100]"],
    **{f"gates/{name}": ["backbone=resnet16"] for name in ("layers", "layers_channels")},
    **{f"compression/rn38_r00{n}": ["backbone=resnet38", "exits=none"] for n in range(4, 9)},
}
# primary configs: what a command cannot do without
PRIMARY = {
    "attack": ["run=runs/x", "threat={eps: 0.1, norm: linf, step_size: 0.02, test_steps: 2, steps: 2}"],
    "evaluate": ["run=runs/x"],
    "certify": ["run=runs/x"],
    "health": ["run=runs/x", "threat={eps: 0.1, norm: linf, step_size: 0.02, test_steps: 2}"],
    "pareto": ["runs=[runs/x]"],
    "table": ["name=smallcnn"],
    "report": ["runs=[runs/x]"],
    "import": ["run=runs/x", "checkpoint=file"],
    "export": ["run=runs/x"],
}
INCLUDED = {"cli", "engine", "training", "training_engine", "untrained"}  # parts of primary configs, not choices
# E of the network that a threshold file is for; three elsewhere
EXITS = {"threshold/paper_resnet38": 7, "threshold/paper_mobilenetv2": 7}


@pytest.fixture(autouse=True)
def without_data_folder(monkeypatch):
    """No RDI_DATA of whoever runs the tests."""
    monkeypatch.delenv("RDI_DATA", raising=False)


@pytest.fixture(autouse=True)
def surrogate(monkeypatch, tiny):
    """A network in place of every run folder that attack=transfer names."""
    static = Surrogate(tiny(exits=1, shape=MNIST, classes=10, seed=7), "static", "00" * 32, MNIST)
    monkeypatch.setattr("rdi.runs.surrogates.load_surrogate", lambda run: static)


def needs_extras(name):
    """Skip what an extra is missing for."""
    if "autoattack" in name:
        pytest.importorskip("pyautoattack")
    if name == "attack/decision":
        pytest.importorskip("art")
    if name == "backbone/timm":
        pytest.importorskip("timm")


def group_of(name):
    return name.split("/")[0] if "/" in name else "primary"


def check_backbone(config, name):
    shape = MNIST if config["data"]["name"] == "digits" else CIFAR
    backbone = build(config["backbone"], "backbone", shape=list(shape), classes=10)
    assert isinstance(backbone, Backbone)
    assert len(backbone.blocks) == len(backbone.shapes)
    net = model(config, shape, 10, seed=0).eval()
    with torch.no_grad():
        logits = net(torch.rand(2, *shape))
    assert logits.shape == (2, len(backbone.paper_exits) + 1, 10)
    assert logits.isfinite().all()


def check_exits(config, name):
    net = model(config, MNIST, 10, seed=0).eval()
    assert isinstance(net, MultiExitNet)
    with torch.no_grad():
        assert net(torch.rand(2, *MNIST)).shape == (2, net.exits, 10)


FEW = {"steps": 2, "restarts": 1, "queries": 20, "classes": 2}
"""Options of attacks -> the most that a test takes."""
KEPT = set()
"""Attack nodes that keep the contract: suites share most of their members."""


def check_attack(config, name, net, x, y):
    attack = build(config["attack"], "attack")
    keeps_the_contract(attack, net, x, y)
    KEPT.add(json.dumps(config["attack"]))
    assert attack.eps == config["threat"]["eps"]


def keeps_the_contract(attack, net, x, y):
    assert isinstance(attack, Attack)
    with torch.no_grad():
        attack = attack.for_policy(ShareRule(score=Entropy()).fit_logits(net.eval()(x)))
    net.train()
    before = {key: tensor.clone() for key, tensor in net.state_dict().items()}
    for one in attack.per_exit(net.exits).values():
        if isinstance(one, ViewAttack):
            # these leave a sample alone that is wrong from the start
            y = one.view(net.eval())(x).argmax(dim=1)
            net.train()
        x_adv, again = (one(net, x, y, torch.Generator().manual_seed(1)) for _ in range(2))
        assert (x_adv - x).abs().max() <= one.eps + 1e-6
        assert x_adv.min() >= 0
        assert x_adv.max() <= 1
        assert torch.equal(x_adv, again)
        assert not torch.equal(x_adv, x)
        assert net.training
        assert all(torch.equal(before[key], tensor) for key, tensor in net.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in net.parameters())


def check_defense(config, name, net, x, y):
    defense = build(config["defense"], "defense")
    assert isinstance(defense, Defense)
    loss, logs = defense.loss(net.train(), x, y, torch.Generator().manual_seed(0))
    assert loss.shape == ()
    loss.backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    assert float(logs["loss"]) == float(loss.detach())
    accuracies = [value for label, value in logs.items() if label in ("clean_accuracy", "robust_accuracy")]
    assert accuracies
    assert all(value.shape == (net.exits,) for value in accuracies)
    assert not any(value.requires_grad for value in logs.values())


def check_compression(config, name):
    shape = MNIST if config["data"]["name"] == "digits" else CIFAR
    net = model(config, shape, 10, seed=0)
    before = sum(weight.numel() for weight in layer_weights(net).values())
    compression = build(config["compression"], "compression")
    assert isinstance(compression, Compression)
    assert compression.start is None
    left = compression.shrink(net, shape)
    budget = compression.budget(net)
    optimizer = torch.optim.SGD(compression.prepare(net), lr=0.01)
    logits = net.train()(torch.rand(2, *shape))
    logits.square().mean().backward()
    compression.before_step()
    optimizer.step()
    compression.after_step()
    torch.save(compression.state(), io.BytesIO())
    with compression.deployed() as parts:
        stored = sum(int(part.count_nonzero()) for part in (parts or layer_weights(net)).values())
    if budget is not None:
        assert stored <= budget < before
    assert bool(left) == (sum(weight.numel() for weight in layer_weights(net).values()) < before)
    assert (name == "compression/none") == (config["compression"] == UNCOMPRESSED)


def check_gates(config, name):
    shape = MNIST if config["data"]["name"] == "digits" else CIFAR
    net = model(config, shape, 10, seed=0).train()
    assert net.gated == (name != "gates/none") == (config["gates"] != UNGATED)
    with build(config["gates"], "gates").step(net, 0.5) as term:
        loss, logs = term.added(net(torch.rand(4, *shape)).square().mean(), {}, whole_batch(4))
    loss.backward()
    assert 0.5 < logs["executed_share"] <= 1.1 if net.gated else logs == {}


def check_threshold(config, name):
    exits = EXITS.get(name, 3)
    chance = torch.Generator().manual_seed(0)
    logits, test = (2 * torch.randn(140, exits, 10, generator=chance) for _ in range(2))
    macs = tuple(range(10, 10 * exits + 1, 10))
    costs = Costs(macs=macs, macs_paper=macs, macs_plain=macs[-1], macs_plain_paper=macs[-1])
    calibration = Calibration(logits, torch.randint(10, (140,), generator=chance), costs)
    rule = build(config["threshold"], "threshold")
    assert isinstance(rule, Rule)
    assert rule.data in KINDS
    rule.check(exits, costs)
    policy = rule.fit(calibration)
    json.dumps(rule.facts(calibration, policy), allow_nan=False)
    assert policy.exits == exits
    assert len(policy.values) in (0, exits - 1)
    assert str(policy)
    # the same again, from the same rule and from what a record keeps
    stored = json.loads(json.dumps(policy.describe(), allow_nan=False))
    for other in (policy, build(config["threshold"], "threshold").fit(calibration), build(stored, "policy")):
        assert other.describe() == stored
        assert other.values == policy.values
        for draw in range(policy.draws):
            chosen = other.with_draw(draw).choose(test)
            assert chosen.shape == (140,)
            assert chosen.dtype == torch.long
            assert 0 <= int(chosen.min()) <= int(chosen.max()) < exits
            assert torch.equal(chosen, policy.with_draw(draw).choose(test))
            labels = other.predict(test, chosen)
            assert torch.equal(labels, other.answers(test).argmax(dim=2)[torch.arange(140), chosen])
    if policy.draws == 1:
        assert torch.equal(policy.choose(test), Policy.choose(policy, test)), "exit by exit, as in a running network"


def check_optim(config, name):
    recipe = build(config["optim"], "optim")
    assert isinstance(recipe, Recipe)
    steps = recipe.steps(10_000)
    rates = [recipe.rate(step, steps) for step in range(0, steps, max(1, steps // 50))]
    assert all(0 < rate <= recipe.lr * (1 + 1e-9) for rate in rates)
    assert max(rates) > 0.9 * recipe.lr
    parameter = torch.nn.Parameter(torch.ones(2))
    optimizer = recipe.optimizer([parameter])
    assert optimizer.param_groups[0]["lr"] == recipe.lr
    parameter.sum().backward()
    optimizer.step()
    assert (parameter < 1).all()


def check_threat(config, name):
    threat = config["threat"]
    assert 0 < threat["step_size"] < threat["eps"]
    assert threat["eps"] < 1 or threat["norm"] != "linf"
    assert threat["step_size"] * threat["steps"] >= threat["eps"], "the ball can be crossed"


def check_data(config, name):
    check_threat(config, name)
    source = build(config["data"], "data")
    assert isinstance(source, Source)
    assert source.name == config["data"]["name"]
    assert source.augment in ("none", "crop", "crop_flip")
    if isinstance(source, Digits):
        data = source.load()
        assert [len(data.split(part)) for part in ("train", "calibration", "test")] == [1097, 300, 400]


def check_tracking(config, name):
    tracking = build(config["tracking"], "tracking")
    assert isinstance(tracking, Wandb)
    # what wandb does with it is in test_tracking.py; here nothing may be started
    assert tracking.mode == {"tracking/none": "disabled"}.get(name, "auto")
    assert callable(tracking.start)


def check_suite(config, name, net, x, y):
    attacks = {key: build(node, "attack") for key, node in config["suite"].items()}
    expanded = {key + suffix: one for key, a in attacks.items() for suffix, one in a.per_exit(net.exits).items()}
    assert len(expanded) >= len(attacks) >= 1
    for node in config["suite"].values():
        # neither more steps nor more restarts keep the contract any better
        short = {option: min(value, FEW[option]) if option in FEW else value for option, value in node.items()}
        if (text := json.dumps(short)) not in KEPT:
            keeps_the_contract(build(short, "attack"), net, x, y)
            KEPT.add(text)


def check_plugin(name):
    """A sweeper or launcher of ours: its file gives every option and nothing else."""
    node = OmegaConf.to_container(OmegaConf.load(CONF / f"{name}.yaml"))
    kind = {"sweeper": Sweeper, "launcher": Launcher}[name.split("/")[1]]
    target = get_class(node["_target_"])
    assert set(node) - {"_target_"} == set(inspect.signature(target).parameters)
    assert isinstance(build(node, "hydra"), kind)


def check_primary(config, name):
    """The primary config composes with nothing but what it demands; the nodes in it build."""
    for key, node in config.items():
        if isinstance(node, dict) and "_target_" in node and key != "backbone":
            assert build(node, key) is not None


def check_corruption(config, name):
    corruption = build(config["corruption"], "corruption")
    assert isinstance(corruption, Corruption)
    assert (len(corruption.kinds), corruption.severities) == (15, (1, 2, 3, 4, 5))


CHECKS = {
    "backbone": ("train", check_backbone),
    "exits": ("train", check_exits),
    "attack": ("train", check_attack),
    "defense": ("train", check_defense),
    "compression": ("train", check_compression),
    "gates": ("train", check_gates),
    "threshold": ("train", check_threshold),
    "optim": ("train", check_optim),
    "threat": ("train", check_threat),
    "data": ("train", check_data),
    "tracking": ("train", check_tracking),
    "corruption": ("attack", check_corruption),
    "suite": ("run", check_suite),
}


def visited():
    """What the next test is called with: every group file and every primary config."""
    names = [f"{group}/{path.stem}" for group in CHECKS for path in sorted((CONF / group).glob("*.yaml"))]
    plugins = [f"hydra/{path.parent.name}/{path.stem}" for path in sorted((CONF / "hydra").glob("*/*.yaml"))]
    return [*names, *plugins, *COMMANDS]


@pytest.mark.parametrize("name", visited())
def test_every_file_composes_builds_and_keeps_the_contract_of_its_group(name, tiny, batch):
    needs_extras(name)
    if group_of(name) == "hydra":
        check_plugin(name)
        return
    if group_of(name) == "primary":
        check_primary(composed(name, *PRIMARY.get(name, [])), name)
        return
    group, choice = name.split("/")
    primary, check = CHECKS[group]
    needed = PRIMARY["attack"] if primary == "attack" else []
    config = composed(primary, f"{group}={choice}", *needed, *MANDATORY.get(name, []))
    if group in ("attack", "defense", "suite"):
        net = tiny(shape=MNIST, classes=10)
        check(config, name, net, *batch(count=2, shape=MNIST, classes=10))
    else:
        check(config, name)


def test_no_file_is_left_out():
    assert set(visited()) | INCLUDED == set(FILES)
    assert len(visited()) == len(set(visited()))
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*CHECKS, "hydra"}


def test_rdi_run_trains_as_rdi_train_does():
    ours, theirs = composed("run"), composed("train")
    assert {key: ours[key] for key in theirs} == theirs


@pytest.mark.parametrize("attack", [name for name in FILES if name.startswith("attack/")])
def test_every_attack_file_serves_the_attack_command_too(attack):
    needs_extras(attack)
    config = composed("attack", f"attack={attack.split('/')[1]}", *PRIMARY["attack"], *MANDATORY.get(attack, []))
    built = build(config["attack"], "attack")
    assert built.eps == 0.1
    if hasattr(built, "steps"):
        assert built.steps == (1 if attack.endswith("_fgsm") else 2)
    else:
        assert attack.split("/")[1] in (
            *("autoattack", "autoattack_exits", "autoattack_mean"),
            *("square", "decision", "transfer"),
        )


def test_fgsm_files_make_one_full_step_from_the_image():
    for name in ("single", "main", "average", "max_avg"):
        attack = build(composed("train", f"attack={name}_fgsm")["attack"], "attack")
        assert (attack.steps, attack.random_start, attack.step_size) == (1, False, attack.eps)


def test_resnet38_with_max_average_is_the_papers_cifar_10_run():
    config = composed("train", "backbone=resnet38", "attack=max_avg")
    assert config["data"]["name"] == "cifar10"
    assert config["data"]["augment"] == "crop_flip"
    assert config["backbone"]["depth"] == 38
    assert config["threat"] == {"eps": 8 / 255, "norm": "linf", "step_size": 2 / 255, "steps": 10, "test_steps": 20}
    assert config["attack"] == config["defense"]["attack"]
    attack = build(config["attack"], "attack")
    assert type(attack).__name__ == "MaxAverage"
    assert (attack.eps, attack.step_size, attack.steps, attack.random_start) == (8 / 255, 2 / 255, 10, True)
    recipe = build(config["optim"], "optim")
    assert (recipe.iterations, recipe.batch_size, recipe.lr) == (64_000, 128, 0.1)
    optimizer = recipe.optimizer([torch.nn.Parameter(torch.zeros(1))])
    assert {key: optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay", "nesterov")} == {
        "lr": 0.1,
        "momentum": 0.9,
        "weight_decay": 1e-4,
        "nesterov": False,
    }
    rates = {step: recipe.rate(step, 64_000) for step in (31_999, 32_000, 47_999, 48_000)}
    assert rates == pytest.approx({31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001})


def test_mobilenet_is_the_papers_cifar_10_run():
    config = composed("train", "backbone=mobilenetv2")
    recipe = build(config["optim"], "optim")
    assert config["data"]["name"] == "cifar10"
    assert (recipe.iterations, recipe.batch_size, recipe.lr) == (82_000, 128, 0.05)
    steps = (61_699, 61_700, 69_999, 70_000, 77_999, 78_000)
    rates = [recipe.rate(step, 82_000) for step in steps]
    assert rates == pytest.approx([0.05, 0.005, 0.005, 0.0005, 0.0005, 0.00005])


def test_the_fast_defense_is_judged_by_the_chosen_multi_step_attack():
    config = composed("train", "defense=fast", "data=mnist")
    assert config["defense"]["attack"] == config["attack"]
    defense = build(config["defense"], "defense")
    assert (type(defense.attack).__name__, defense.attack.steps, defense.attack.eps) == ("MaxAverage", 40, 0.3)
    assert (defense.noise, defense.step) == (2, 1)
    # the YAML repeats the defaults of the class
    assert defense.guard == Fast(attack=defense.attack).guard
    assert defense.guard_steps == Fast(attack=defense.attack).guard_steps


def test_mnist_is_the_papers_smallcnn_run():
    config = composed("train", "data=mnist")
    assert config["threat"] == {"eps": 0.3, "norm": "linf", "step_size": 0.01, "steps": 40, "test_steps": 40}
    assert config["backbone"]["_target_"] == "rdi.backbones.smallcnn"
    recipe = build(config["optim"], "optim")
    assert (recipe.iterations, recipe.batch_size, recipe.lr) == (13_100, 256, 0.033)
    rates = [recipe.rate(step, 13_100) for step in (11_699, 11_700, 12_899, 12_900)]
    assert rates == pytest.approx([0.033, 0.0033, 0.0033, 0.00033])
    assert recipe.optimizer([torch.nn.Parameter(torch.zeros(1))]).defaults["weight_decay"] == 5e-4


@pytest.mark.parametrize(
    ("overrides", "key", "value"),
    [
        (["backbone=resnet38", "data=digits"], "data.name", "digits"),
        (["backbone=resnet38", "data=svhn"], "data.name", "svhn"),
        (["backbone=resnet38", "optim=cosine"], "optim.schedule", "cosine"),
        (["optim=cosine", "backbone=resnet38"], "optim.schedule", "cosine"),
        (["data=mnist", "optim=fast"], "optim.schedule", "one_cycle"),
        (["backbone=resnet38", "optim.iterations=10"], "optim.iterations", 10),
        (["backbone=resnet38", "threat.eps=${px:4}"], "attack.eps", 4 / 255),
        (["backbone=resnet38", "threat.eps=${px:4}"], "defense.attack.eps", 4 / 255),
        (["data=mnist", "threat.steps=7"], "attack.steps", 7),
        (["data=mnist", "threat=linf8"], "attack.eps", 8 / 255),
        (["threat=linf8", "backbone=resnet38", "data=mnist", "threat.eps=0.2"], "threat.eps", 0.2),
        (["threat=linf8", "backbone=resnet38", "data=mnist"], "attack.steps", 10),
        (["attack=average", "attack.steps=3"], "defense.attack.steps", 3),
        (["optim.lr=0.5"], "optim.optimizer.lr", 0.5),
        (["backbone=resnet38", "backbone.depth=74"], "backbone.depth", 74),
        (["seed=5"], "seed", 5),
    ],
)
def test_what_the_user_types_wins(overrides, key, value):
    node = composed("train", *overrides)
    for part in key.split("."):
        node = node[part]
    assert node == value


def test_a_data_choice_beside_a_backbone_brings_its_own_threat_but_the_typed_recipe_stays():
    config = composed("train", "backbone=resnet38", "data=digits", "optim=resnet38")
    assert config["threat"]["eps"] == 0.1
    assert config["optim"]["iterations"] == 64_000


def test_suites_judge_with_the_test_steps():
    config = composed("run", "suite=paper", "data=mnist", "threat.steps=5")
    assert set(config["suite"]) == {"single", "average", "max_avg"}
    attacks = {name: build(node, "attack") for name, node in config["suite"].items()}
    assert {attack.steps for attack in attacks.values()} == {40}
    assert list(attacks["single"].per_exit(3)) == ["_exit0", "_exit1", "_exit2"]
    assert config["attack"]["steps"] == 5


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+new=1"], "new is not an option"),
        (["threshold=fixed"], r"threshold\.values is missing"),
    ],
)
def test_unknown_and_missing_options_are_refused_by_name(overrides, message):
    with pytest.raises(UserError, match=message):
        composed("train", *overrides)


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"_target_": "rdi.attacks.Average", "eps": 0.1, "steps": 1, "stepsize": 0.1}, "no option 'stepsize'"),
        ({"_target_": "rdi.attacks.Average", "eps": 0.1}, "needs the option 'steps'"),
        ({"_target_": "rdi.attacks.Nonsense"}, "cannot be imported"),
        ({"_target_": "rdi.attacks.Average", "eps": 2, "steps": 1, "step_size": 0.1}, r"attack\.eps"),
        ({"_target_": "rdi.attacks.Average", "eps": "8/255", "steps": 1, "step_size": 0.1}, r"\$\{px:8\}"),
        ({"_target_": "rdi.attacks.Average", "eps": 0.1, "steps": 1, "colour": 1}, "no option 'colour'"),
        (
            {
                "_target_": "rdi.attacks.Average",
                "eps": 0.1,
                "steps": 1,
                "rule": {"_target_": "rdi.attacks.Wasserstein", "penalties": 1},
            },
            "no option 'penalties'",
        ),
    ],
)
def test_nodes_that_do_not_fit_their_target_are_refused_in_one_line(node, message):
    with pytest.raises(UserError, match=message) as caught:
        build(node, "attack")
    assert "\n" not in str(caught.value)


def targets(tree):
    """Every `_target_` in a plain config."""
    if isinstance(tree, dict):
        yield from [tree["_target_"]] if "_target_" in tree else []
        tree = list(tree.values())
    if isinstance(tree, list):
        for item in tree:
            yield from targets(item)


@pytest.mark.parametrize(
    "file", sorted(conf_dir().glob("[!h]*/**/*.yaml")), ids=lambda file: f"{file.parent.name}-{file.stem}"
)
def test_whatever_our_configs_name_may_stand_in_a_run_folder(file):
    named = set(targets(OmegaConf.to_container(OmegaConf.load(file))))
    assert {name for name in named if kind_of(name) is None} == set()


@pytest.mark.parametrize("name", [name for kind in NODE_KINDS.values() for name in kind.names])
def test_every_name_of_the_registry_leads_to_a_class_or_function(name):
    module, _, attribute = name.rpartition(".")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_an_error_names_the_option_where_it_stands():
    node = {"_target_": "rdi.attacks.Average", "eps": 2, "steps": 1, "step_size": 0.1}
    with pytest.raises(UserError, match=r"^suite\.average\.eps must be in"):
        build(node, "suite.average")
    with pytest.raises(UserError, match=r"^suite\.x: rdi\.attacks\.Average has no option 'foo'"):
        build({**node, "foo": 1}, "suite.x")
    with pytest.raises(UserError, match=r"^backbone must be a choice of its group"):
        build([1], "backbone")


def test_options_that_a_class_hands_to_its_base_are_known():
    source = build({"_target_": "rdi.data.Digits", "name": "x", "calibration": 5, "split_seed": 3, "size": 8}, "data")
    assert (source.calibration, source.split_seed) == (5, 3)


def test_build_gives_plain_lists_to_what_it_builds():
    rule = build(composed("train", "threshold=paper_resnet38")["threshold"], "threshold")
    assert type(rule.offsets) is list


def test_the_identity_of_a_run_is_its_science():
    base = composed("train")
    same = [["run=elsewhere"], ["device=cpu"], ["threads=2"], ["tracking=none"], ["overwrite=true"]]
    other = [["seed=1"], ["threat.eps=0.2"], ["backbone.dropout=0.2"], ["data.split_seed=1"], ["optim.lr=0.01"]]
    assert {identity(composed("train", *words)) for words in same} == {identity(base)}
    assert len({identity(composed("train", *words)) for words in [*other, []]}) == 6
    assert identity(composed("run")) == identity(base), "`rdi run` trains what `rdi train` trains"


@pytest.mark.parametrize("group", ["compression", "gates"])
def test_runs_from_before_there_were_compression_and_gates_keep_their_identity(group):
    config = composed("train")
    assert identity({key: value for key, value in config.items() if key != group}) == identity(config)
    choices = {"compression": ["l0"], "gates": ["layers", "layers_channels", "layers gates.share=0.9"]}[group]
    assert len(
        {identity(config), *(identity(composed("train", *f"{group}={one}".split())) for one in choices)}
    ) == 1 + len(choices)


def test_the_place_of_the_data_is_no_science():
    here, there = (composed("train", "data=mnist", f"data.root={root}") for root in ("a", "b"))
    assert here["data"]["root"] == "a"
    assert identity(here) == identity(there)


def test_the_same_seed_makes_the_same_weights_and_another_seed_others():
    config = composed("train")
    state = torch.get_rng_state()
    first, again, other = (model(config, MNIST, 10, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["stages.0.0.0.weight"], other["stages.0.0.0.weight"])
    assert torch.equal(state, torch.get_rng_state())


def test_normalisation_in_the_config_is_inside_the_network():
    config = composed("train", "normalise={mean: [0.5], std: [0.25]}")
    net = model(config, MNIST, 10, seed=0)
    assert net.stages[0][0].mean.flatten().tolist() == [0.5]
    assert net.stages[0][0].std.flatten().tolist() == [0.25]


def test_a_pixel_level_is_a_255th():
    assert _schema.px(8) == 8 / 255
    assert composed("train", "threat.eps=${px:16}")["threat"]["eps"] == 16 / 255
