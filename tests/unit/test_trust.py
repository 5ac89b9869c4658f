"""A run folder is data: what it may name, what it may make us read and write, and what of it may reach a terminal."""

import ast
import copy
import csv
import io
import json
import os
import struct
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from rdi import config, confine, storage, trust
from rdi.errors import UserError
from rdi.folders import RunFolder, report_folder
from rdi.records import Manifest, Thresholds, read
from rdi.report import tables
from rdi.runs.identity import identity
from rdi.runs.weights import load_weights
from rdi.searching import Choices, Search

ROOT = Path(__file__).resolve().parents[2]
MANIFESTS = sorted(
    path for path in (ROOT / "results").rglob("manifest.json") if "config" in json.loads(path.read_text())
)


def moved_engine(tree):
    """The same config, with one class spelled by another place than its canonical one."""
    return json.loads(json.dumps(tree).replace("rdi.attacks.engine.Engine", "rdi.fast_copy.FastCopy"))


@pytest.mark.parametrize("path", MANIFESTS, ids=lambda path: path.parent.name)
def test_a_moved_class_keeps_the_identity_of_the_committed_runs(path, monkeypatch):
    manifest = read(path, Manifest)
    assert identity(manifest.config) == manifest.identity
    monkeypatch.setitem(config.HOMES, "rdi.attacks.engine.Engine", "rdi.fast_copy.FastCopy")
    again = moved_engine(manifest.config)
    assert (again == manifest.config) == ("rdi.attacks.engine.Engine" not in path.read_text())
    assert identity(again) == manifest.identity


def test_a_class_is_known_by_one_name_wherever_in_its_package_it_lies():
    assert config.canonical("rdi.attacks.max_average.MaxAverage") == "rdi.attacks.MaxAverage"
    assert config.canonical("rdi.attacks.families.new.MaxAverage") == "rdi.attacks.MaxAverage"
    assert config.canonical("torch.optim.sgd.SGD") == "torch.optim.sgd.SGD", "others keep theirs"
    assert config.canonical("my_attacks.MaxAverage") == "my_attacks.MaxAverage"


def test_a_moved_class_is_built_from_its_old_name_and_described_by_it(monkeypatch):
    class FastCopy:
        def __init__(self, fold):
            self.fold = fold

        def copy(self, model):
            return model

    place = ModuleType("rdi_moved")
    place.FastCopy, FastCopy.__module__, FastCopy.__qualname__ = FastCopy, "rdi_moved", "FastCopy"
    monkeypatch.setitem(sys.modules, "rdi_moved", place)
    monkeypatch.setitem(config.HOMES, "rdi.attacks.engine.Engine", "rdi_moved.FastCopy")
    node = {"_target_": "rdi.attacks.engine.Engine", "fold": True}
    built = config.build(node, "engine")
    assert type(built) is FastCopy
    assert config.describe(built) == node


DEMO = ROOT / "results" / "demo"
DEMO_CONFIG = json.loads((DEMO / "manifest.json").read_text())["config"]
NAMES = """
torch.utils.collect_env.run torch.load torch.serialization.load torch.hub.load torch.jit.load torch.save
torch.compile torch.utils.cpp_extension.load_inline torch.nn.Sequential torch.optim.Optimizer
torch.optim.lr_scheduler.LambdaLR torch.optim.sgd.SGD torch.optim.SGD.__init__ numpy.load numpy.fromfile
numpy.memmap numpy.save site.addsitedir io.open os.system os.popen os.remove os.makedirs os.execvp os shutil.rmtree
shutil.copyfile subprocess.run subprocess.Popen subprocess.check_output builtins.eval builtins.exec builtins.open
builtins.print builtins.__import__ pathlib.Path pathlib.Path.touch pathlib.Path.write_text importlib.import_module
importlib.reload runpy.run_path runpy.run_module functools.partial functools.reduce operator.methodcaller
operator.attrgetter pickle.loads pickle.load marshal.loads code.interact ctypes.CDLL logging.FileHandler
tempfile.mkdtemp urllib.request.urlretrieve webbrowser.open pydoc.pipepager hydra.utils.instantiate
hydra.utils.get_method omegaconf.OmegaConf.save wandb.init joblib.load safetensors.torch.save_file
matplotlib.pyplot.savefig rdi.cli.main rdi.runs.beginning.remove_run rdi.records.write rdi.folders.RunFolder
rdi.config.build rdi.trust.trusted rdi.load rdi.data.augment rdi.attacks.Attack rdi.attacks.crafting
rdi.attacks.project rdi.compression.measure rdi.exits.MultiExitNet rdi.attacks.base.torch.load
rdi.config.importlib.import_module rdi.exits.net.torch.hub.load rdi.attacks.__builtins__
rdi.attacks.Average.__init__ rdi.attacks.Average.craft rdi.attacks.os.Average rdi.attacks.apgd.APGD rdi.__getattr__
hydra_plugins.rdi_launchers.gpu_pool.GpuPool my_attacks.Weakest Weakest os.system.Average rdi..attacks.Average
.os.system
"""
FOREIGN = NAMES.split()
PLACES = {
    "threshold.score": lambda c, node: c["threshold"].__setitem__("score", node),
    "threshold": lambda c, node: c.__setitem__("threshold", node),
    "backbone": lambda c, node: c.__setitem__("backbone", node),
    "backbone.dropout": lambda c, node: c["backbone"].__setitem__("dropout", node),
    "exits.heads[0]": lambda c, node: c.__setitem__(
        "exits", {"_target_": "rdi.exits.CustomExits", "taps": [1], "heads": [node]}
    ),
    "data.root": lambda c, node: c["data"].__setitem__("root", node),
    "defense.attack": lambda c, node: c["defense"].__setitem__("attack", node),
    "optim.optimizer": lambda c, node: c["optim"].__setitem__("optimizer", node),
    "optim.milestones[0].x": lambda c, node: c["optim"].__setitem__("milestones", [{"x": node}]),
    "tracking": lambda c, node: c.__setitem__("tracking", node),
    "threat.eps": lambda c, node: c["threat"].__setitem__("eps", node),
    "normalise": lambda c, node: c.__setitem__("normalise", node),
    "seed": lambda c, node: c.__setitem__("seed", node),
    "suite.average": lambda c, node: c.setdefault("suite", {}).__setitem__("average", node),
}


@pytest.fixture
def manifest(tmp_path):
    """manifest(change) -> path of the demo's manifest, its config changed."""

    def make(change):
        content = json.loads((DEMO / "manifest.json").read_text())
        change(content["config"])
        path = tmp_path / "manifest.json"
        path.write_text(json.dumps({key: value for key, value in content.items() if key != "checksum"}))
        return path

    return make


@pytest.mark.parametrize("place", PLACES)
def test_a_record_cannot_name_what_rdi_does_not_write(place):
    before = set(sys.modules)
    for target in FOREIGN:
        stored = copy.deepcopy(DEMO_CONFIG)
        PLACES[place](stored, {"_target_": target, "command": "touch canary", "f": "x.pt", "weights_only": False})
        with pytest.raises(UserError) as caught:
            trust.check_config(stored)
        assert str(caught.value).startswith(place), target
    assert set(sys.modules) == before, "nothing is imported to find out"


AVERAGE = {"_target_": "rdi.attacks.Average", "eps": 0.1, "steps": 1, "step_size": 0.1}
ODD_NODES = {
    "positional arguments": {**AVERAGE, "_args_": ["touch canary"]},
    "a partial that is none of ours": {**AVERAGE, "_partial_": True},
    "a partial that is no truth value": {**AVERAGE, "_partial_": "true"},
    "an optimiser that is made at once": {"_target_": "torch.optim.SGD", "lr": 0.1},
    "an optimiser for an attack": {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1},
    "no recursion": {**AVERAGE, "_recursive_": False},
    "conversion": {**AVERAGE, "_convert_": "all"},
    "dunder": {**AVERAGE, "__class__": "os"},
    "a list of targets": {"_target_": ["os", "system"]},
    "a number": {"_target_": 1},
    "nothing": {"_target_": None},
    "a node": {"_target_": AVERAGE},
    "an environment variable": {**AVERAGE, "eps": "${oc.env:HOME}"},
    "a reference": {**AVERAGE, "eps": "${..seed}"},
    "a target by reference": {"_target_": "${oc.env:TARGET}"},
    "another kind": {"_target_": "rdi.backbones.smallcnn"},
    "an attack in a step rule": {**AVERAGE, "rule": {"_target_": "rdi.attacks.APGD", "rho": AVERAGE}},
    "a data set in an attack": {**AVERAGE, "rule": {"_target_": "rdi.data.Digits", "name": "x", "calibration": 1}},
    "code in a list in a dictionary": {**AVERAGE, "rule": [{"x": [{"_target_": "os.system", "command": "id"}]}]},
}


@pytest.mark.parametrize("name", ODD_NODES)
def test_a_record_holds_nodes_as_rdi_writes_them(name):
    stored = copy.deepcopy(DEMO_CONFIG)
    stored["defense"]["attack"] = ODD_NODES[name]
    with pytest.raises(UserError, match=r"^defense\.attack"):
        trust.check_config(stored)


@pytest.mark.parametrize("node", ["rdi.backbones.smallcnn", [AVERAGE], {"eps": 1}, 1, True, []])
def test_a_group_of_a_record_holds_one_node(node):
    with pytest.raises(UserError, match=r"^backbone names nothing that could be built"):
        trust.check_config({**DEMO_CONFIG, "backbone": node})


def test_what_rdi_writes_may_be_read(manifest):
    for path in MANIFESTS:
        assert read(path, Manifest)
    attack = {**AVERAGE, "rule": {"_target_": "rdi.attacks.APGD"}}
    assert read(manifest(lambda c: c["defense"].update(attack=attack)), Manifest)
    heads = [{"_target_": "rdi.exits.PoolMLP", "_partial_": True, "hidden": 8}]
    exits = {"_target_": "rdi.exits.CustomExits", "taps": [1], "heads": heads}
    assert read(manifest(lambda c: c.update(exits=exits)), Manifest)


def test_reading_a_manifest_checks_it(manifest):
    path = manifest(lambda c: c["threshold"].update(score={"_target_": "torch.utils.collect_env.run", "command": "id"}))
    with pytest.raises(UserError, match=r"manifest\.json: .*threshold\.score names torch\.utils\.collect_env\.run"):
        read(path, Manifest)


@pytest.mark.parametrize("field", ["policy", "rule"])
@pytest.mark.parametrize(
    "node", [{"_target_": "os.system", "command": "id"}, AVERAGE, {"score": AVERAGE}, {"_target_": 1}]
)
def test_reading_thresholds_checks_them(field, node, tmp_path):
    content = json.loads((DEMO / "thresholds" / "entropy.json").read_text())
    content.pop("checksum", None)
    content[field] = node
    path = tmp_path / "entropy.json"
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match=rf"entropy\.json: .*{field}"):
        read(path, Thresholds)


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """A module my_attacks of the user's that imports os, with the class Weakest in it."""
    (tmp_path / "my_attacks.py").write_text(
        "import os\nfrom pathlib import Path\nfrom subprocess import run\n"
        "class Weakest:\n    def __init__(self, eps=0.1):\n        self.eps = eps\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield {"_target_": "my_attacks.Weakest", "eps": 0.2}
    sys.modules.pop("my_attacks", None)


def test_a_plugin_in_a_record_needs_trust_by_name(plugin, manifest):
    path = manifest(lambda c: c["defense"].update(attack=plugin))
    with pytest.raises(UserError, match=r"defense\.attack names my_attacks\.Weakest.*add trust=\[my_attacks\]$"):
        read(path, Manifest)
    assert "my_attacks" not in sys.modules, "refused before it was imported"
    with (
        pytest.raises(UserError, match=r"add trust=\[my_attacks\]"),
        trust.trusted(["my_attack", "my_attacks.x"]),
    ):
        read(path, Manifest)
    with trust.trusted(["my_attacks"]):
        assert read(path, Manifest).config["defense"]["attack"] == plugin
    with pytest.raises(UserError):
        read(path, Manifest)
    with trust.trusted(config={"attack": plugin}):
        assert read(path, Manifest), "what the command line names itself"


@pytest.mark.parametrize(
    "target", ["my_attacks.os.system", "my_attacks.Path", "my_attacks.run", "my_attacks.nothing", "my_attacks.os"]
)
def test_trust_in_a_module_is_none_in_what_it_imports(plugin, manifest, target):
    path = manifest(lambda c: c["defense"].update(attack={"_target_": target}))
    with pytest.raises(UserError, match="no class or function of the module my_attacks"), trust.trusted(["my_attacks"]):
        read(path, Manifest)


@pytest.mark.parametrize("module", ["", "my_attacks.", "a b", "*", 1, "os;"])
def test_trust_lists_modules(module):
    with pytest.raises(UserError, match="trust must list modules"), trust.trusted([module]):
        pass


def test_a_trusted_module_that_is_not_here_is_said(manifest):
    path = manifest(lambda c: c["defense"].update(attack={"_target_": "nowhere_at_all.Attack"}))
    with pytest.raises(UserError, match="there is no such module here"), trust.trusted(["nowhere_at_all"]):
        read(path, Manifest)


TEXTS = ("\x1b[31mred", "\x1b]0;title\x07", "a\nb", "\u202eevil", "\x9b31m", "\r", "\ud800", "\x00")


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("place", ["class_names", "choices", "key"])
def test_records_with_text_that_a_terminal_acts_upon_are_refused_without_showing_it(text, place, manifest):
    path = manifest(lambda c: None)
    content = json.loads(path.read_text())
    if place == "class_names":
        content["data"]["class_names"][3] = text
    elif place == "choices":
        content["choices"]["backbone"] = text
    else:
        content["config"][text] = 1
    path.write_text(json.dumps(content))
    with pytest.raises(UserError, match="control characters") as caught:
        read(path, Manifest)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", "1e999", "9" * 40, "9" * 5000])
def test_records_with_numbers_that_none_of_ours_holds_are_refused(value, manifest):
    path = manifest(lambda c: c["backbone"].update(dropout="VALUE"))
    path.write_text(path.read_text().replace('"VALUE"', value))
    with pytest.raises(UserError, match=r"manifest\.json"):
        read(path, Manifest)


@pytest.mark.parametrize("depth", [150, 300, 900, 3000, 200_000])
def test_deep_records_are_refused(depth, manifest):
    path = manifest(lambda c: c["backbone"].update(dropout="VALUE"))
    path.write_text(path.read_text().replace('"VALUE"', "[" * depth + "]" * depth))
    if depth > 200:
        with pytest.raises(UserError, match=r"manifest\.json"):
            read(path, Manifest)
    else:
        assert read(path, Manifest)


VICTIM = b"precious"


@pytest.fixture
def victim(tmp_path):
    """A file outside, that must stay as it is."""
    path = tmp_path / "outside" / "victim"
    path.parent.mkdir()
    path.write_bytes(VICTIM)
    yield path
    assert path.read_bytes() == VICTIM
    assert [entry.name for entry in path.parent.iterdir()] == ["victim"]


LINKS = (".lock", "manifest.json", "log.txt", "train.jsonl", "done", "resume.pt", "banks/x.npz")


@pytest.mark.parametrize("name", LINKS)
def test_a_link_out_of_a_run_folder_is_refused_before_it_is_written(name, victim, tmp_path):
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim)
    with pytest.raises(UserError, match="is a link out of its folder"), RunFolder(tmp_path / "run").hold():
        pytest.fail("held")


@pytest.mark.parametrize("name", ["banks", "evals", "gallery", "thresholds", "wandb", "health", "banks/test-clean"])
def test_a_linked_folder_in_a_run_folder_is_refused(name, victim, tmp_path):
    link = tmp_path / "run" / name
    link.parent.mkdir(parents=True)
    link.symlink_to(victim.parent)
    (victim.parent / ".left.partial").mkdir()
    with pytest.raises(UserError, match="is a link out of its folder"), RunFolder(tmp_path / "run").hold():
        pytest.fail("held")
    (victim.parent / ".left.partial").rmdir()


@pytest.mark.parametrize("target", ["nowhere", "/nowhere/at/all", "../outside/new"])
def test_a_dangling_link_makes_nothing_outside(target, victim, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "log.txt").symlink_to(target)
    if target == "nowhere":
        with RunFolder(run).hold():
            pass
        return
    with pytest.raises(UserError, match="is a link out of its folder"), RunFolder(run).hold():
        pytest.fail("held")


@pytest.mark.parametrize("name", [".lock", "log.txt"])
def test_a_second_name_of_a_file_outside_is_refused(name, victim, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).hardlink_to(victim)
    with pytest.raises(UserError, match="hard link"), RunFolder(tmp_path / "run").hold():
        pytest.fail("held")


@pytest.mark.parametrize("name", ["log.txt", ".lock", "manifest.json", "banks/test-clean/bank.npz"])
def test_nobody_waits_at_a_pipe(name, tmp_path):
    pipe = tmp_path / "run" / name
    pipe.parent.mkdir(parents=True)
    os.mkfifo(pipe)
    with pytest.raises(UserError, match="is a pipe"), RunFolder(tmp_path / "run").hold():
        pytest.fail("held")
    with pytest.raises(UserError, match="is no file"):
        read(pipe, Manifest)
    with pytest.raises(UserError, match="is no file"):
        storage.sha256(pipe)
    with pytest.raises(UserError, match="missing or damaged"):
        storage.read_arrays(pipe, "remove it")


@pytest.mark.parametrize("name", ["../x", "..", ".", "", "a/b", "/tmp/x", "a\\b", "a\nb", "\x1b[31m", "x" * 300])
def test_names_that_become_files_stay_in_their_folder(name, tmp_path):
    folder = RunFolder(tmp_path)
    for make in (
        report_folder,
        folder.thresholds,
        folder.health,
        lambda name: folder.evaluation(name, "test", "clean"),
        lambda name: folder.early_exit(name, "test"),
    ):
        with pytest.raises(UserError) as caught:
            make(name)
        assert str(caught.value).isprintable()
    if name in ("", ".", ".."):
        return  # behind "test-" these are names
    for make in (
        folder.bank,
        folder.partial_bank,
        folder.gallery,
        lambda s, name: folder.evaluation("entropy", s, name),
    ):
        with pytest.raises(UserError):
            make("test", name)


def test_a_run_folder_that_a_terminal_acts_upon_is_refused(tmp_path):
    for text in TEXTS[:-2]:
        with pytest.raises(UserError, match="control characters") as caught:
            RunFolder(tmp_path / text)
        assert str(caught.value).isprintable()


def npz(path, header, content, *, method=zipfile.ZIP_STORED):
    """An .npz file with one array, of this header and these bytes."""
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, header)
    with zipfile.ZipFile(path, "w", method) as archive:
        archive.writestr("logits.npy", stream.getvalue() + content)


def test_archives_that_announce_more_than_they_hold_are_refused_before_anything_is_allocated(tmp_path):
    path = tmp_path / "bank.npz"
    huge = {"descr": "<f4", "fortran_order": False, "shape": (2**40, 10)}
    npz(path, huge, b"\0" * 16)
    with pytest.raises(UserError, match="missing or damaged: remove it"):
        storage.read_arrays(path, "remove it")
    npz(path, {"descr": "<f4", "fortran_order": False, "shape": (-1,)}, b"")
    with pytest.raises(UserError, match="missing or damaged: remove it"):
        storage.read_arrays(path, "remove it")


def test_archives_that_unpack_to_gigabytes_are_refused_unread(tmp_path, monkeypatch):
    path = tmp_path / "bank.npz"
    monkeypatch.setattr(confine, "LARGEST_UNPACKED", 1000)
    size = 10_000
    npz(path, {"descr": "|u1", "fortran_order": False, "shape": (size,)}, b"\0" * size, method=zipfile.ZIP_DEFLATED)
    with pytest.raises(UserError, match="missing or damaged: remove it"):
        storage.read_arrays(path, "remove it")


@pytest.mark.parametrize("compress", [False, True])
def test_arrays_of_objects_are_never_unpickled(compress, tmp_path):
    class Canary:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "canary",))

    save = np.savez_compressed if compress else np.savez
    save(tmp_path / "bank.npz", logits=np.array([Canary()], dtype=object))
    with pytest.raises(UserError, match="missing or damaged: remove it"):
        storage.read_arrays(tmp_path / "bank.npz", "remove it")
    assert not (tmp_path / "canary").exists()


def test_records_larger_than_any_of_ours_are_refused_unread(manifest, monkeypatch):
    path = manifest(lambda c: None)
    monkeypatch.setattr(confine, "LARGEST_RECORD", 100)
    with pytest.raises(UserError, match="is larger than any record"):
        read(path, Manifest)


@pytest.mark.parametrize("header", [2**62, 2**40, 8])
def test_weights_with_absurd_headers_are_refused(header, tmp_path, tiny):
    path = tmp_path / "checkpoint.safetensors"
    path.write_bytes(struct.pack("<Q", header) + b'{"a":{"dtype":"F32","shape":[1099511627776],"data_offsets":[0,4]}}')
    with pytest.raises(UserError, match="damaged or not a safetensors file"):
        load_weights(path, tiny())


def test_torch_and_numpy_never_unpickle_code_anywhere():
    """Every call in the sources says so itself."""
    for file in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if not isinstance(node, ast.Call):
                continue
            said = {word.arg: getattr(word.value, "value", None) for word in node.keywords}
            name = ast.unparse(node.func)
            if name == "torch.load":
                assert said.get("weights_only") is True, file
            if name == "np.load":
                assert said.get("allow_pickle") is False, file
            # what a process writes for its own children, into a folder that only its user can enter
            launcher = "rdi_launchers" in file.parts or file.name in ("_rank.py", "_ranks.py")
            assert launcher or name.split(".")[0] not in ("pickle", "cloudpickle", "marshal", "eval", "exec"), file


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ("=cmd|' /C calc'!A0", "'=cmd|' /C calc'!A0"),
        ("+1+1", "'+1+1"),
        ("-2+3", "'-2+3"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1", "\\t=1"),
        ("\r=1", "\\r=1"),
        ("-0.5 0.25", "-0.5 0.25"),
        ("-1e-07", "-1e-07"),
        ("+3", "+3"),
        ("-inf", "-inf"),
        ("runs/demo", "runs/demo"),
        ("", ""),
    ],
)
def test_no_cell_of_a_csv_file_is_a_formula(value, written):
    line = tables.comma_separated([{"run": value, "accuracy": -0.5, "macs": None}]).split("\n", 1)[1]
    assert next(csv.reader([line])) == [written, "-0.5", ""]


def test_a_stored_search_cannot_type_options_of_its_own(tmp_path):
    params = {"backbone._target_": "os.system"}
    optuna = pytest.importorskip("optuna")

    def search():
        return Search(tmp_path / "study.db", {"accuracy": "maximize"}, {"optim.lr": Choices(("0.1", "0.2"))}, {})

    one = search()
    number, _ = one.ask()
    one.tell(number, (0.5,), "runs/a")
    assert len(search().trials()) == 1
    distributions = {key: optuna.distributions.CategoricalDistribution([value]) for key, value in params.items()}
    state = optuna.trial.TrialState.COMPLETE
    foreign = optuna.trial.create_trial(state=state, params=params, distributions=distributions, values=[0.9])
    one.study.add_trial(foreign)
    with pytest.raises(UserError, match="which this search cannot have proposed"):
        search().trials()
