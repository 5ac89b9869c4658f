"""Mistakes of commands in several processes: one line of one rank, and none of them waits for ever."""

import shlex
import socket

import pytest

from helpers.commands import TINY
from helpers.mistakes import FOLDER, images, snapshot
from helpers.ranks import commands, free_port, on_ranks
from rdi.cli import main

LINE = f"train run={{place}}/run device=cpu {TINY}"
OWN = f"train run={{place}}/run device=cpu {FOLDER}"
NO_GPU = {"CUDA_VISIBLE_DEVICES": ""}
ABSENT = None
# what is wrong -> words of both ranks, what is said
ALIKE = {
    "device=cuda": (f"{LINE} device=cuda", "device=cuda:0 is not here"),
    "ranks=3": (f"{LINE} ranks=3", "ranks=3, but 2 processes were started: leave ranks out"),
    "more ranks than images": (f"{LINE} optim.batch_size=1", "optim.batch_size=1 images cannot be shared by 2 ranks"),
    "another batch size": (
        f"train run={{place}}/unfinished device=cpu {TINY} optim.batch_size=16",
        "unfinished was started with other settings (optim.batch_size",
    ),
    "other images": (OWN, "rank 1: the images of imagefolder differ from those that the run was made with"),
    "images on one node": (OWN.replace("data.root=pictures", ""), "rank 1: no folder only: set data.root=DIR"),
    "missing shards": (
        f"""{OWN} data=shards data.root=. 'data.train_shards="train-{{{{000..002}}}}.tar"'""",
        "3 of 3 shards are missing",
    ),
}
# what is wrong -> words of each rank, environment of each beside torchrun's (None: not set), what is said
UNLIKE = {
    "other words": (
        (f"{LINE} seed=0", f"{LINE} seed=1"),
        "rank 1 was started with seed=1, and rank 0 with seed=0: start all of them alike",
    ),
    "another command": ((LINE, LINE.replace("train", "run", 1)), "rank 1 was started with run, and rank 0 with train"),
    "a choice on one node": ((LINE, f"{LINE} attack=nowhere"), "rank 1: "),
}
ALONE = {
    "a port in use": ({"MASTER_PORT": "{taken}"}, "port {taken} is in use: set MASTER_PORT to another one"),
    "no such port": ({"MASTER_PORT": "99999"}, "the ranks cannot meet ("),
    "no other rank": ({}, "the ranks cannot meet ("),
    "half an environment": ({"WORLD_SIZE": None}, "RANK is set and WORLD_SIZE is not: set both"),
    "the other half": ({"RANK": None}, "WORLD_SIZE is set and RANK is not: set both"),
    "no such rank": ({"RANK": "2"}, "RANK=2 and WORLD_SIZE=2 must be whole numbers, RANK from 0 to below WORLD_SIZE"),
}
WAIT = {"no other rank": 2}
"""Seconds; others wait only where something is broken."""


def variables(rank, more):
    """What torchrun sets."""
    given = {
        **{"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "localhost", "MASTER_PORT": str(free_port()), **more},
    }
    return {name: value for name, value in given.items() if value is not None}


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What is wrong -> status and words of both ranks; all in two processes, which take seconds to start."""
    place = tmp_path_factory.mktemp("ranks")
    main(shlex.split(f"train run={place}/unfinished device=cpu {TINY}"))
    (place / "unfinished" / "done").unlink()
    before = snapshot(place / "unfinished")
    for rank in range(2):
        images(place / f"node{rank}" / "pictures", offset=rank)
    images(place / "node0" / "only")
    with socket.socket() as taken:
        taken.bind(("localhost", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        cases = []
        for name, (words, _) in {**ALIKE, **UNLIKE}.items():
            both = (words, words) if isinstance(words, str) else words
            shared = variables(0, NO_GPU if name == "device=cuda" else {})
            own = {"RDI_DATA": "only"} if name == "images on one node" else {}
            given = ({**shared, **own}, {**shared, "RANK": "1", "LOCAL_RANK": "1"})
            wait = 2 if name == "ranks=3" else 60  # no rank comes
            cases.append([(one.format(place=place), more, wait) for one, more in zip(both, given, strict=True)])
        for name, (more, _) in ALONE.items():
            more = {key: value and value.format(taken=port) for key, value in more.items()}
            cases.append([(LINE.format(place=place), variables(0, more), WAIT.get(name, 60)), (ABSENT, {}, 0)])
        ranks = on_ranks(2, commands, str(place), cases, meet=False)
    assert not (place / "run").exists()
    assert snapshot(place / "unfinished") == before
    return dict(zip([*ALIKE, *UNLIKE, *ALONE], zip(*ranks, strict=True), strict=True)), port


@pytest.mark.parametrize("name", [*ALIKE, *UNLIKE, *ALONE])
def test_a_mistake_is_one_line_of_the_leading_rank(name, said):
    both, port = said
    (status, first), (other, second) = both[name]
    assert status == 2, first
    assert other != 0 or name in ALONE, second
    assert "Traceback" not in first + second
    lines = [line for line in (first + second).splitlines() if line.startswith("rdi")]
    assert len(lines) == 1, first + second
    assert {**ALIKE, **UNLIKE, **ALONE}[name][1].format(taken=port) in lines[0]
    assert lines[0] in first
