"""Bad input gives one line on stderr that says what to do, exit status 2, and leaves everything as it was."""

import errno
import json
import pickle
import shutil
import subprocess
import sys

import pytest
import torch

from helpers.commands import TINY, environment
from helpers.forked import Forked
from helpers.mistakes import FOLDER, images, refused, snapshot
from rdi.locks import LOCK, hold

STARTS = {
    "trian": "did you mean `rdi train`?",
    "frobnicate": "choose one of run, train",
    "train backbone=resnet99": "choose one of mobilenetv2, mobilenetv2_075, msdnet",
    "train bakbone=resnet38": "did you mean backbone?",
    "train attack.stepz=3": "did you mean attack.steps?",
    "train foo=3": "there are attack, backbone",
    "train batch_size=3": "did you mean optim.batch_size?",
    "train lr=0.1": "did you mean optim.lr?",
    "train optim.lr.x=1": "optim.lr is one value: write optim.lr=...",
    "train seed.x=1": "seed is one value: write seed=...",
    "train 'seed={a:1}'": "seed is one value: write seed=...",
    "evaluate run.x=1": "run is one value: write run=...",
    "train attack.weights.rate=1": "there are attack.eot, attack.eps,",
    "evaluate foo.bar=1": "there is no foo either",
    "train hydra.foo.bar=1": "there are hydra.callbacks,",
    "train epochs=1": "did you mean optim.epochs?",
    "train optim.optimizer.lr=0.5": "would be overwritten by the schedule: set optim.lr=0.5 instead",
    "train optim.average=0.9 compression=l0 defense=standard": "which no compression limits: set optim.average=null",
    "train start=runs/a compression=l0 compression.start=runs/b": "two runs to start from, compression.start=runs/b",
    "train defense=boosted defense.frozen=true attack=ensemble attack.exit=1": "trains the first exit alone, and",
    "train backbone=msdnet3 exits=lean data=digits data.size=16": "takes the features behind block 0, 3840: choose",
    "train backbone=mobilenetv2 backbone.width=0.05 data=digits": "leaves no channel of 16: at least 0.0625",
    "train momentum=0": "did you mean optim.optimizer.momentum?",
    "train eps=0.1": "did you mean threat.eps?",
    "train model=resnet38": "did you mean backbone?",
    "train dataset=mnist": "did you mean data?",
    "train resnet38": "did you mean backbone=resnet38?",
    "train --backbone resnet38": "there is no flag --backbone; options are key=value: write backbone=resnet38",
    "train --batch-size=3": "write batch_size=3",
    "attack runs/demo": "did you mean run=runs/demo?",
    "attack --run runs/demo": "did you mean run=runs/demo?",
    "attack --run=runs/demo": "write run=runs/demo",
    "pareto runs/a": "did you mean runs=[runs/a]?",
    "pareto demo": "did you mean runs=[demo]?",
    "pareto ratios": "write ratios=... with a value",
    "list runs/mnist": "did you mean runs=[runs/mnist]?",
    "list mnist": "did you mean runs=[mnist]?",
    "evaluate demo": "did you mean run=demo?",
    "evaluate margin": "did you mean threshold=margin?",
    "table smallcnn": "did you mean name=smallcnn?",
    "import x.pt": "did you mean weights=x.pt?",
    "evaluate run=runs/x backbone=resnet38": "there is no backbone=... here: a finished run knows its own",
    "evaluate run=runs/x optim.lr=1": "a finished run knows its own optim: leave it out",
    "health run=runs/x model=resnet38": "a finished run knows its own backbone: leave it out",
    "attack run=runs/x attack.eps=0.03": "threat.eps=... holds for every attack; or give attack=... as well",
    "health run=runs/x tracking=none": "there is no tracking=... here",
    "train tracking.project=a/b": "tracking.project must be 1 to 128 characters, none of",
    "train threat.eps=8": "got 8.0: pixels are in [0, 1]; for 8/255 write threat.eps='${px:8}'",
    "train attack.step_size=2": "for 2/255 write attack.step_size='${px:2}'",
    "train run=runs/mine": "there is no run runs/mine to go on with",
    "train run=runs/mine overwrite=true device=cpu": "there is no run runs/mine to go on with",
    "pareto 'runs=[runs/*]'": "no run folder matches runs/*",
    "report runs=runs/*": "no run folder matches runs/*",
    f"train backbone={'a' * 3000}": "more characters)",
    "train 'threshold.values=[1,'": "threshold.values cannot be read",
    "train hydra.run.dir=/dev/null": "/dev/null: File exists; a file lies where a folder belongs",
    f"train run={'a' * 300}": "File name too long",
    "train threshold.score=null": "threshold.score",
    "train threshold=paper_smallcnn threshold.scales=inf": "threshold.scales must be a finite number",
    "train optim.milestones=[nan]": "optim.milestones[0] must be a finite number",
    "train attack.step_size=-inf": "attack.step_size must be a finite number",
    "train seed=18446744073709551616": "seed must be at most 9223372036854775807",
    "run ratios=2147483648": "ratios must be at most 10000",
    "train optim.lr=1e308": "optim.lr must be a finite number",
    "train device=meta": "device=meta is not here",
    "train 'backbone=[1]'": "backbone=[1] names none of its choices",
    "train attack=[average,main]": "attack=average, or add -m attack=average,main to run every one",
    "run sweep=[alpha]": "sweep=... takes one choice, as sweep=alpha",
    "train 'optim=[nan]'": "optim=[nan] names none of its choices",
    "train defense.engine=-1e9": "defense.engine",
    "train data.name=1": "data.name",
    "train defense.exit_weights=[0,0,0]": "defense.exit_weights",
    "table name=smallcnn rows=[]": "rows",
    "train +new=1": "new is not an option here",
    "train +threat.foo=1": "threat.foo is not an option here; the options are eps",
    "train +attack.foo=1": "has no option 'foo'; its options are eot, eps",
    "train ++attack.foo=1": "has no option 'foo'; its options are eot, eps",
    "train --foo": "there is no flag --foo",
    "train seed": "options are key=value",
    "train seed=1,2": "add -m",
    "train seed=abc": "seed=abc (Value 'abc' of type 'str' could not be converted to Integer)",
    "train seed=-1": "seed must be at least 0, got -1",
    "bench rows=[inference,inference]": "rows names inference twice: give it once",
    "bench batch_sizes=[3,1,3]": "batch_sizes names 3 twice: give it once",
    "train threads=0": "threads must be at least 1",
    "train ranks=0": "ranks must be from 1 to",
    "train ranks=-1": "ranks must be from 1 to",
    "train ranks=30000": "of this machine, got 30000",
    "train ranks=1000000000": "ranks must be at most 32768, got 1000000000",
    "train batchnorm=none": "batchnorm must be one of synchronised, local",
    "train precision=fp8": "precision must be one of float32, bf16",
    "train attack=null": "see the choices with --help",
    "train ~attack": "attack is missing: give attack=...",
    "train threat.norm=l2": "threat.norm=l2 needs threat.eps=... and threat.step_size=... as well",
    "run threat.norm=l2 threat.eps=0.5": "threat.norm=l2 needs threat.step_size=... as well: those that are there were",
    "train attack.norm=l2": "attack.norm=l2 needs attack.eps=... and attack.step_size=... as well",
    "run suite=quick suite.average.norm=l1": "suite.average.norm=l1 needs suite.average.eps=... and",
    "import weights=x.pt run=runs/x threat.norm=l2": "threat.norm=l2 needs threat.eps=...",
    "bench threat.norm=l2": "threat.norm=l2 needs threat.eps=...",
    "table name=smallcnn profile=smoke \"options=['threat.norm=l2']\"": "threat.norm=l2 needs threat.eps=...",
    "run corruption=common": "there is no corruption=... here: give it to `rdi attack`",
    "table name=smallcnn profile=smoke \"options=['corruption=common']\"": "give it to `rdi attack`",
    "train attack.eps=abc": "attack.eps must be a number in [0, 1], got 'abc'",
    "train attack.eps=-1": "attack.eps must be in [0, 1]",
    "train threat.eps=-1": "threat.eps must be in [0, 1]",
    "train attack.eps=8/255": "write 'attack.eps=${px:8}'",
    "train threat.eps=8/255": "write 'threat.eps=${px:8}'",
    "train 'attack.eps=${px:abc}'": "write for example ${px:8}",
    "train 'attack.eps=${pxx:8}'": "write '${px:8}'",
    "train attack.steps=0": "attack.steps must be at least 1",
    "train threat.steps=0": "threat.steps must be at least 1",
    "train optim.iterations=3 optim.epochs=1": "give one of optim.iterations and optim.epochs",
    "train optim.optimizer.momentum=-1": "Invalid momentum value: -1",
    "train threat=linf_digits attack.norm=l2": "attack.norm=l2 needs attack.eps=... and attack.step_size=... as well",
    "train threat=l2_digits attack.norm=l1 attack.eps=3": "attack.norm=l1 needs attack.step_size=... as well",
    "train threat=l2_digits attack=routed": "to train against, choose another, as attack=max_avg",
    "train threat.norm=null": "threat.norm cannot be null",
    "train backbone=torchvision backbone.name=resnet18 data=digits": "take images of 3 channels, and these have 1",
    "train data=shards 'data.train_shards=\"{0..999999999}.tar\"'": "means 1,000,000,000 files",
    "train data=shards data.train_shards=a.tar data.test_shards=a.tar": "a.tar is among data.train_shards and",
    "export run=runs/x threshold=entropy": "`rdi evaluate run=... threshold=...` fits and stores one",
    "export run=runs/x format=[onnx]": "format must be one text, got a list",
    "export run=runs/x single=maybe": "single must be true or false, got maybe",
    "table name=smallcnn profile=smoke \"options=['seed=3']\"": "seed is the table's own (seeds=[0,1] says which)",
    "table name=smallcnn profile=smoke \"options=['suite=full']\"": "suite is the table's own (its columns are of",
    "train data=digits defense=paired attack=routed": "to train against, choose another, as attack=max_avg",
    "train data=digits defense=paired attack=single attack.exit=7": "attack.exit=7 does not exist",
    "table name=smallcnn rows=main": "rows must be a list, got main: write it in brackets, as [main]",
    "bench batch_sizes=[]": "batch_sizes is empty",
    "list runs=nowhere": "there is no folder nowhere",
    "import weights=/dev/zero run=runs/x backbone=smallcnn data=digits data.calibration_from=test": (
        "/dev/zero is no file: give weights=FILE"
    ),
    "attack": "run is missing: give run=...",
    "evaluate": "run is missing: give run=...",
    "health": "run is missing: give run=...",
    "health run=nowhere": "there is no run nowhere here or in runs/",
    "pareto": "runs is missing: give runs=...",
    "report": "runs is missing: give runs=...",
    "import": "run is missing: give run=...",
    "export": "run is missing: give run=...",
    "train threshold=fixed": "threshold.values is missing",
    "run threshold=fixed": "threshold.values is missing",
    "train threshold=fixed threshold.values=[0.1]": "threshold.values must list 2 numbers",
    "train threshold.shares=[0.5,0.5]": "threshold.shares must list 3 shares",
    "train threshold.offsets=[1]": "threshold.offsets must list 2 numbers",
    "train threshold=budget": "give one of threshold.macs, threshold.share and threshold.accuracy",
    "train threshold=budget threshold.share=1 threshold.macs=1": "give one of threshold.macs",
    "train threshold=budget threshold.share=abc": "threshold.share must be a number in (0, inf), got 'abc'",
    "train threshold=budget threshold.share=0.01": "no image costs less than 1015440 MACs (exit 0)",
    "train threshold=budget threshold.share=1 threshold.data=dirty": "threshold.data must be one of clean",
    "train threshold=budget threshold.share=1 threshold.data=mixed": "give it to `rdi evaluate run=...` afterwards",
    "train threshold=budget threshold.accuracy=0.9": "give it to `rdi evaluate run=...` afterwards",
    "run threshold=budget threshold.accuracy=0.9": "give it to `rdi evaluate run=...` afterwards",
    "train threshold=patience threshold.patience=2": "threshold.patience must be in [1, 1], got 2",
    "train threshold=patience exits=none": "patience compares exits, and this network has 1",
    "train threshold=ensemble threshold.mean=median": "threshold.mean must be one of geometric, arithmetic",
    "train threshold=ensemble threshold.weights=[1,2]": "threshold.weights must list 3 numbers",
    "train threshold=ensemble threshold.rule.shares=[1]": "threshold.shares must list 3 shares",
    "train threshold=random threshold.noise=0": "threshold.noise must be in (0, 0.5]",
    "train threshold=random threshold.draws=0": "threshold.draws must be in [1, 10000]",
    "train threshold=random threshold@threshold.rule=patience": "threshold.rule must give thresholds",
    "train threshold=risk threshold.alpha=0": "threshold.alpha must be in (0, 1]",
    "train threshold=risk threshold.risk=loss": "threshold.risk must be one of drop, error",
    "train threshold=risk threshold.risk=error": "give it to `rdi evaluate run=...` afterwards",
    "train compression=atcm": "choose one of atmc, bap, channels, l0, none, reweighted",
    "train compression=l0 compression.ratio=0": "compression.ratio must be in (0, 1], got 0",
    "train compression=l0 compression.ratio=1e-9": "compression.ratio=1e-09 leaves none of",
    "train compression=atmc compression.ratio=1.1": "compression.ratio must be in (0, 1], got 1.1",
    "train compression=atmc compression.bits=0": "compression.bits must be in [1, 32], got 0",
    "train compression=atmc compression.bits=20": "compression.bits must be 1 to 16, or 32 or null",
    "train compression=atmc compression.start=nowhere": "there is no run nowhere here or in runs/",
    "train compression=channels": "give one of compression.ratio and compression.widths",
    "train compression=channels compression.ratio=0.5": "give start=RUN",
    "train compression=rn38_r006 exits=none": "compression.widths must list 6 numbers for this network",
    "train compression=none compression.ratio=0.1": "give compression=... as well",
    "train defense.exit_weights=[1,2]": "defense.exit_weights must list 3 numbers",
    "train defense=standard defense.exit_weights=[1,2]": "defense.exit_weights must list 3 numbers",
    "train defense=fast attack=max_avg_fgsm": "choose for example attack=max_avg",
    "train defense=fast defense.noise=-1": "defense.noise must be in [0, inf)",
    "train defense=fast defense.exit_weights=[1,2]": "defense.exit_weights must list 3 numbers",
    "train exits=custom exits.taps=[9]": "exits.taps must be ascending block numbers from 0 to 2",
    "train exits=custom exits.taps=[2,1]": "exits.taps must be ascending block numbers from 0 to 2",
    "train attack=single attack.exit=7": "this network has exits 0 to 2",
    "train attack=single attack.exit=each": "choose one exit, as attack.exit=0",
    "run suite.single.exit=7": "this network has exits 0 to 2",
    "run batch_size=0": "batch_size must be at least 1",
    "run stages=[trian]": "stages may be train, attack, evaluate, pareto",
    "train 'normalise={mean:[0.5],std:[0]}'": "normalise.std must be in (0, inf)",
    "train 'normalise={mean:[0.5,0.5],std:[1,1]}'": "normalise.mean must list 1 numbers",
    "train data.size=10": "images of 1x10x10 do not fit this backbone",
    "train data.calibration=5000": "lower data.calibration",
    "train data=mnist data.root=nowhere": "put MNIST/raw/train-images-idx3-ubyte",
    "train data=cifar10 data.root=nowhere": "put cifar-10-batches-py/",
    "train data=imagefolder data.root=nowhere": "set data.root=DIR",
    "train device=foo": "use device=auto or device=cpu",
    "attack run=nowhere": "there is no run nowhere here or in runs/",
    "attack run=far/away": "train one with `rdi train run=far/away data=...`",
    "evaluate run=nowhere": "there is no run nowhere here or in runs/",
    "pareto runs=[nowhere]": "there is no run nowhere here or in runs/",
    "pareto runs=[]": "runs is empty: give runs=[runs/a,runs/b]",
    "report runs=[nowhere]": "there is no run nowhere here or in runs/",
    "report runs=[]": "runs is empty: give runs=[runs/a,runs/b]",
    "import checkpoint=nowhere.pt run=runs/x": "give checkpoint=FILE",
    "import weights=nowhere.pt run=runs/x": "does not exist: give weights=FILE",
    "import weights=a.pt checkpoint=b.pt run=runs/x": "one of them",
    "import run=runs/x": "give weights=FILE",
}


@pytest.mark.parametrize("line", STARTS)
def test_a_start_that_fails_says_why_and_leaves_nothing(line, rdi, tmp_path):
    refused(rdi(line), STARTS[line])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_where_there_is_none(rdi, tmp_path):
    refused(rdi("train device=cuda"), "device=cuda is not here", "use device=auto or device=cpu")
    assert list(tmp_path.iterdir()) == []


FINISHED = {
    "attack run=runs/demo threat.norm=l2": "mean nothing in l2: give threat.eps=... and threat.step_size=...",
    "health run=runs/demo threat.norm=l2 threat.eps=0.5": "mean nothing in l2",
    "certify run=runs/demo threat.norm=l2": "threat.norm=l2 needs a radius in that norm, eps 0.1 is none",
    "pareto runs=[runs/demo] threat.norm=l2 tracking=none": "threat.norm=l2 needs a radius in that norm",
    "report runs=[runs/demo] threat.norm=l1": "threat.norm=l1 needs a radius in that norm",
    "attack run=runs/demo attack=average attack.norm=l2": "attack.norm=l2 needs attack.eps=... and attack.step_size",
    "evaluate run=runs/demo corruption=common": "there is no corruption=... here: give it to `rdi attack`",
    "attack run=runs/demo corruption=common threat.eps=0.2": "threat.eps changes nothing beside corruption=...",
    "attack run=runs/demo corruption=common suite=full": "suite changes nothing beside corruption=...",
    "attack run=runs/demo corruption=common label=x": "label changes nothing beside corruption=...",
    "attack run=runs/demo corruption=common corruption.kinds=fog": "corruption.kinds must be a list, each item a text",
    "bench run=runs/demo backbone=resnet16": "backbone changes nothing beside run=...",
    "bench run=runs/demo threat.eps=0.2": "threat.eps changes nothing beside run=...",
    "bench run=runs/demo name=../x": "name must be a plain name",
    "attack run=runs/demo attack=average threat=linf_digits threat.norm=l2": "threat.norm=l2 needs threat.eps=... and",
    "attack run=runs/demo attack=average label=../x": "label must be a word",
    "attack run=runs/demo/manifest.json": "is a file, and a run is a folder: did you mean run=runs/demo?",
    "train run=runs/demo": "is finished already and stays as it is",
    "train run=runs/demo overwrite=true attack.eps=7": "attack.eps must be in [0, 1]",
    "train run=runs/demo overwrite=true threshold=fixed threshold.values=[1]": "must list 2 numbers",
    "run run=runs/demo": "is finished with other settings",
    "train run=runs/b exits=custom exits.taps=[0] compression=l0 compression.start=runs/demo": (
        "start=runs/demo is another network (backbone smallcnn, exits paper, data digits; "
    ),
    "attack run=runs/demo attack.steps=3": "give attack=... as well",
    "attack run=runs/demo attack=single attack.exit=9": "this network has exits 0 to 2",
    "attack run=runs/demo suite=quick samples=16 threat.test_steps=2": "replace it with overwrite=true",
    "attack run=runs/demo suite=paper samples=8": "test-average was made with other settings (samples 16, not 8",
    "health run=runs/demo thresholds=margin": "no thresholds 'margin'; stored: entropy",
    "health run=runs/demo threat.eps=0": "threat.eps must be in (0, 1]",
    "health run=runs/demo restarts=1": "restarts must be at least 2",
    "health run=runs/demo large_eps=0.1": "large_eps must be in [0.5, 1]",
    "health run=runs/demo batch_size=0": "batch_size must be at least 1",
    "evaluate run=runs/demo tracking=none threshold=fixed threshold.values=[0.1]": "must list 2 numbers",
    "evaluate run=runs/demo tracking=none threshold=budget threshold.share=0.05": "no image costs less than",
    "evaluate run=runs/demo tracking=none threshold=budget threshold.accuracy=1": "the most accurate give 0.",
    "evaluate run=runs/demo tracking=none threshold=budget threshold.share=1 threshold.data=adversarial": (
        "run `rdi attack run=runs/demo split=calibration attack=average` first"
    ),
    "evaluate run=runs/demo tracking=none threshold=risk threshold.data=adversarial": (
        "run `rdi attack run=runs/demo split=calibration attack=average` first"
    ),
    "evaluate run=runs/demo tracking=none threshold=risk threshold.risk=error threshold.alpha=0.001": (
        "even the full network cannot be certified"
    ),
    "attack run=runs/demo split=train": "split must be one of test, validation, calibration; got 'train'",
    "attack run=runs/demo split=validation": "there are no validation images: train with data.validation=N",
    "evaluate run=runs/demo tracking=none split=validation": "run `rdi attack run=runs/demo split=validation` first",
    "evaluate run=runs/demo tracking=none split=calibration": "split must be one of test, validation; got",
    "run run=runs/demo split=validation": "fronts and pages are of the test images",
    "pareto runs=[runs/demo,runs/demo] tracking=none": "twice: give every run once",
    "pareto runs=[runs/demo] tracking=none reference_macs=0": "reference_macs must be in (0, inf)",
    "pareto runs=[runs/demo] tracking=none ratios=1": "ratios must be at least 2",
    "report runs=[runs/demo,runs/demo]": "twice: give every run once",
    "report runs=[runs/demo] reference_macs=-1": "reference_macs must be in (0, inf)",
    "import run=runs/demo checkpoint=nowhere.pt": "replace it with overwrite=true",
    "import run=runs/demo checkpoint=nowhere.pt overwrite=true": "give checkpoint=FILE",
}


@pytest.mark.parametrize("line", FINISHED)
def test_a_finished_run_stays_as_it_is(line, rdi, demo):
    (demo / "log.txt").unlink()
    before = snapshot(demo)
    refused(rdi(line), FINISHED[line])
    (demo / "log.txt").unlink(missing_ok=True)
    assert snapshot(demo) == before


UNFINISHED = {
    "attack run=runs/demo": "go on with `rdi train run=runs/demo`",
    "evaluate run=runs/demo": "go on with `rdi train run=runs/demo`",
    "report runs=[runs/demo]": "go on with `rdi train run=runs/demo`",
    "pareto runs=[runs/demo]": "go on with `rdi train run=runs/demo`",
    "train run=runs/demo seed=5": "(seed: 0 -> 5): go on with `rdi train run=runs/demo` alone",
    "run run=runs/demo": "was started with other settings",
}


@pytest.mark.parametrize("line", UNFINISHED)
def test_an_unfinished_run_stays_as_it_is(line, rdi, demo):
    (demo / "done").unlink()
    before = snapshot(demo)
    refused(rdi(line.replace("seed=5", f"{TINY} threat.test_steps=1 seed=5")), UNFINISHED[line])
    assert snapshot(demo) == before


@pytest.mark.parametrize(
    "line",
    [
        "train run=mine",
        "train run=mine overwrite=true",
        "attack run=mine",
        "attack run=mine overwrite=true",
        "evaluate run=mine",
        "pareto runs=[mine]",
        "report runs=[mine]",
        "import run=mine checkpoint=x",
        "import run=mine checkpoint=x overwrite=true",
    ],
)
def test_a_folder_that_is_no_run_is_left_alone(line, rdi, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    refused(rdi(line), "not a run folder")
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.tex"]


def test_a_run_folder_that_cannot_be_made(rdi, tmp_path):
    (tmp_path / "file").write_text("")
    refused(rdi("train run=file/run"), "cannot make the folder file/run", "choose another one")
    refused(rdi("train run=/proc/run"), "cannot make the folder /proc/run", "choose another one")


def test_two_processes_on_one_run_folder(rdi, demo):
    with hold(demo):
        for line in ("train run=runs/demo", "run run=runs/demo", "attack run=runs/demo", "evaluate run=runs/demo"):
            refused(rdi(line), "runs/demo is in use by process", "choose another folder")
    assert not (demo / LOCK).exists()


def test_a_second_training_process_is_turned_away(rdi):
    first = Forked(f"train run=runs/one {TINY.replace('iterations=2', 'iterations=1000')}")
    try:
        while "going on" not in (line := first.stderr.readline()) and "parameters" not in line:
            assert line, "the training ended early"
        refused(rdi("train run=runs/one"), f"is in use by process {first.pid}")
    finally:
        first.kill()
        first.communicate()


class Boom:
    def __reduce__(self):
        return (open, ("boom", "w"))


def spoil(path, how):
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    elif how == "truncated":
        path.write_bytes(content[: len(content) // 2])
    elif how == "noise":
        path.write_bytes(bytes(255 - byte for byte in content[:3000]))
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Boom()))


# a bank without a manifest is no bank, so that one is spoilt, never missing
@pytest.mark.parametrize(
    ("file", "line", "how"),
    [
        (file, line, how)
        for how in ("missing", "truncated", "noise", "pickle")
        for file, line in [
            ("checkpoint.safetensors", "attack run=runs/demo suite=quick samples=8"),
            ("splits.npz", "attack run=runs/demo suite=quick samples=8"),
            ("manifest.json", "attack run=runs/demo"),
            ("manifest.json", "train run=runs/demo"),
            ("banks/test-average/bank.npz", "evaluate run=runs/demo tracking=none"),
            ("banks/test-average/bank.npz", "pareto runs=[runs/demo] tracking=none"),
            ("banks/calibration-clean/bank.npz", "evaluate run=runs/demo tracking=none"),
            ("banks/test-average/manifest.json", "evaluate run=runs/demo tracking=none"),
        ]
        if (file, how) != ("banks/test-average/manifest.json", "missing")
    ],
)
def test_damaged_files_of_a_run(file, line, how, rdi, demo, tmp_path):
    spoil(demo / file, how)
    refused(rdi(line), "runs/demo")
    assert not (tmp_path / "boom").exists()


def test_weights_of_another_network(rdi, demo):
    from safetensors.torch import load_file, save_file

    state = load_file(demo / "checkpoint.safetensors")
    save_file(
        {name.replace("stages", "floors"): tensor for name, tensor in state.items()}, demo / "checkpoint.safetensors"
    )
    refused(rdi("attack run=runs/demo suite=quick samples=8"), "belongs to another network")
    save_file({name: tensor + 1 for name, tensor in state.items()}, demo / "checkpoint.safetensors")
    refused(rdi("attack run=runs/demo suite=quick samples=8"), "is not the file that the run ended with")


@pytest.mark.parametrize("how", ["truncated", "noise", "pickle", "foreign"])
def test_damaged_state_of_an_unfinished_run(how, rdi, demo, tmp_path):
    (demo / "done").unlink()
    torch.save({"step": 1, "model": {"a": torch.zeros(1)}}, demo / "resume.pt")
    spoil(demo / "resume.pt", how)
    refused(
        rdi("train run=runs/demo tracking=none threads=1"), "resume.pt", "delete it to start this run from its first"
    )
    assert not (tmp_path / "boom").exists()
    (demo / "resume.pt").unlink()
    assert rdi("train run=runs/demo tracking=none threads=1").status == 0


def test_foreign_checkpoints_are_not_imported(rdi, tmp_path):
    net = torch.nn.Linear(2, 2)
    torch.save({"state_dict": net.state_dict()}, "other.pt")
    torch.save({"state_dict": {"module.group1_layer0.conv1.weight": torch.zeros(1)}}, "small.pt")
    torch.save([1, 2], "list.pt")
    torch.save({"state_dict": {"a": Boom()}}, "boom.pt")
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps(Boom()))
    (tmp_path / "half.pt").write_bytes((tmp_path / "other.pt").read_bytes()[:900])
    for name, phrase in {
        "other": "choose the backbone it belongs to",
        "small": "choose the backbone it belongs to",
        "list": "holds no state_dict of plain tensors",
        "boom": "cannot be loaded safely",
        "pickle": "cannot be loaded safely",
        "half": "cannot be loaded safely",
    }.items():
        refused(rdi(f"import checkpoint={name}.pt run=runs/x data=digits"), phrase)
        assert not (tmp_path / "runs").exists()
    assert not (tmp_path / "boom").exists()


def test_image_folders_that_do_not_do(rdi, tmp_path):
    pictures = tmp_path / "pictures"
    (pictures / "cat").mkdir(parents=True)
    refused(rdi(f"train run=runs/x {FOLDER}"), "no images in pictures")
    images(pictures)
    images(pictures, classes=("dog",), count=1, size=(24, 20), offset=100)
    refused(rdi(f"train run=runs/x {FOLDER}"), "dog/100.png is 24x20, the first image 20x20: set data.size=N")
    (pictures / "dog" / "100.png").write_text("no image")
    refused(rdi(f"train run=runs/x {FOLDER}"), "dog/100.png is not a readable image (its content is none of")
    (pictures / "dog" / "100.png").unlink()
    refused(rdi(f"train run=runs/x {FOLDER} data.size=8"), "images of 3x8x8 do not fit this backbone")
    (pictures / "train").mkdir()
    (pictures / "test").mkdir()
    for part in ("train", "test"):
        images(pictures / part)
    shutil.rmtree(pictures / "test" / "dog")
    refused(rdi(f"train run=runs/x {FOLDER}"), "test has no class 'dog'")
    images(pictures / "test", classes=("cow", "dog"))
    refused(rdi(f"train run=runs/x {FOLDER}"), "train has no class 'cow'")
    shutil.rmtree(pictures / "test" / "cow")
    shutil.rmtree(pictures / "train" / "dog")
    shutil.rmtree(pictures / "test" / "dog")
    refused(rdi(f"train run=runs/x {FOLDER}"), "at least two classes")
    assert not (tmp_path / "runs").exists()


def test_other_images_than_the_run_was_made_with(rdi, tmp_path, monkeypatch):
    images(tmp_path / "pictures")
    images(tmp_path / "larger", size=(24, 24))
    images(tmp_path / "fewer", count=3)
    assert rdi(f"train run=runs/x {FOLDER}").status == 0
    for root in ("larger", "fewer"):
        refused(
            rdi(f"attack run=runs/x suite=quick data.root={root}"),
            "differ from those that the run was made with",
            "data.root",
        )
    (tmp_path / "runs" / "x" / "done").unlink()
    (tmp_path / "pictures").rename("moved")
    monkeypatch.setenv("RDI_DATA", "fewer")
    refused(rdi("train run=runs/x tracking=none"), "differ from those that the run was made with", "no folder ")
    monkeypatch.setenv("RDI_DATA", "moved")
    assert rdi("train run=runs/x tracking=none").status == 0


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 2 MB, where the rights suffice to mount one."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(folder)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_full_disk(rdi, small_disk):
    result = rdi(f"train run=disk/x {TINY}")
    refused(result, "No space left on device", "make room or choose another folder")
    assert "Logging error" not in result.err
    assert not (small_disk / "x" / "done").exists()
    assert not [path for path in (small_disk / "x").iterdir() if path.name.startswith(".")]


def test_a_full_disk_without_one(rdi, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    from rdi.runs import train

    monkeypatch.setattr(train.FolderStore, "save_state", full)
    refused(rdi(f"train run=runs/x {TINY}"), "No space left on device")
    monkeypatch.undo()


def test_a_read_only_disk(rdi, small_disk):
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    refused(rdi(f"train run=disk/x {TINY}"), "cannot make the folder disk/x", "Read-only file system")


def test_a_loss_that_is_not_finite_stops_the_training(rdi, tmp_path):
    line = f"train run=runs/x {TINY} optim.lr=1e9"
    refused(rdi(line), "not finite at step", "smaller optim.lr")
    assert not (tmp_path / "runs" / "x" / "done").exists()
    assert "not finite" in (tmp_path / "runs" / "x" / "log.txt").read_text()


def test_the_last_good_checkpoint_outlives_a_loss_that_is_not_finite(rdi, tmp_path, monkeypatch):
    from rdi.optim import Recipe

    constant = Recipe.rate
    monkeypatch.setattr(Recipe, "rate", lambda self, step, steps: 1e30 if step >= 2 else constant(self, step, steps))
    line = f"train run=runs/x {TINY.replace('iterations=2', 'iterations=4')} evaluations=4"
    refused(rdi(line), "not finite at step 3 of 4")
    state = torch.load(tmp_path / "runs" / "x" / "resume.pt", weights_only=True)
    assert state["step"] == 2
    assert all(tensor.isfinite().all() for tensor in state["model"].values())
    lines = (tmp_path / "runs" / "x" / "train.jsonl").read_text().splitlines()
    assert [json.loads(text)["step"] for text in lines] == [1, 2]


def test_a_bug_keeps_its_traceback_which_also_goes_to_the_log(rdi, tmp_path, monkeypatch):
    from rdi.defenses import Adversarial

    calls = []
    healthy = Adversarial.loss

    def broken(*arguments):
        calls.append(1)
        return healthy(*arguments) if len(calls) < 2 else {}["bug"]

    monkeypatch.setattr(Adversarial, "loss", broken)
    with pytest.raises(KeyError, match="bug"):
        rdi(f"train run=runs/x {TINY}")
    log = (tmp_path / "runs" / "x" / "log.txt").read_text()
    assert "Traceback (most recent call last)" in log
    assert "KeyError: 'bug'" in log


def test_the_exit_status_of_a_bug_is_1(tmp_path):
    code = "import rdi.cli.list as p, rdi.cli; p.run = None; rdi.cli.main(['list'])"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("rows=[speed]", ["rows must be one of attacks, torchattacks, memory"]),
        ("rows=[accuracy]", ["leaves nothing to measure", "with run=... and quick=false only"]),
        ("rows=[]", ["leaves nothing to measure"]),
        ("shape=[3,32]", ["shape must be three whole numbers CHW"]),
        ("shape=[3,0,32]", ["shape must be at least 1"]),
        ("batch_sizes=[0]", ["batch_sizes must be at least 1"]),
        ("steps=0", ["steps must be at least 1"]),
        ("repeats=many", ["repeats"]),
        ("classes=1", ["classes must be at least 2"]),
        ("run=runs/none", ["no run folder runs/none"]),
        ("backbone=smallcnn shape=[1,8,8]", ["images of 1x8x8 do not fit this backbone"]),
    ],
)
def test_bench_says_what_it_cannot_measure(options, words, rdi):
    refused(rdi(f"bench quick=true {options}"), *words)
