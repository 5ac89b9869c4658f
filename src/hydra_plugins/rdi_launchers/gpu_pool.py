"""`hydra/launcher=gpu_pool`: the jobs of a sweep on the GPUs of this machine, one process each, one job per GPU."""

from __future__ import annotations

from collections.abc import Sequence

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


class GpuPool(Launcher):
    """Each free device takes the next job; a job that is killed is reported as failed, and the others finish.

    devices: indices or UUIDs as in CUDA_VISIBLE_DEVICES, "cpu" for a process without GPU, None = every GPU of the
    machine. jobs_per_device: processes that share one device.
    """

    def __init__(self, devices: Sequence[str | int] | None = None, jobs_per_device: int = 1) -> None:
        self.devices = devices
        self.jobs_per_device = jobs_per_device
        self.config: DictConfig | None = None
        self.hydra_context: HydraContext | None = None
        self.task_function: TaskFunction | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        """Keep what Hydra hands a launcher before it runs jobs."""
        self.hydra_context, self.task_function, self.config = hydra_context, task_function, config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        """Run the jobs and return how each ended, in order.

        Raises UserError when there is no device; KeyboardInterrupt, after all processes have ended, on SIGINT, SIGTERM.
        """
        from hydra_plugins.rdi_launchers import _pool

        assert self.config is not None, "setup() comes first"
        shared = (self.hydra_context, self.config, self.task_function)
        slots = _pool.slots(self.devices, self.jobs_per_device)
        return _pool.run(shared, [list(words) for words in job_overrides], initial_job_idx, slots)
