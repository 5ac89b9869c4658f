"""Several processes that share batches over gloo, for tests."""

import pickle
import sys
import tempfile
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from rdi.ranks import ALONE, Ranks


def _one(rank, count, folder, paths, function, arguments):
    sys.path[:] = paths
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count, timeout=timedelta(seconds=120))
    answer = function(Ranks(rank, count, rank, count), *arguments)
    Path(folder, str(rank)).write_bytes(pickle.dumps(answer))
    dist.destroy_process_group()


def on_ranks(count, function, *arguments):
    """Call function(ranks, *arguments) in `count` processes; what each returned. function: of a module of tests."""
    if count == 1:
        return [function(ALONE, *arguments)]
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_one, (count, folder, sys.path, function, arguments), nprocs=count)
        return [pickle.loads(Path(folder, str(rank)).read_bytes()) for rank in range(count)]
