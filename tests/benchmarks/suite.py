"""Measures one workload: ntkpipe beside the floor, and other ways to the same results."""

import statistics
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch

from benchmarks.contraction import METHODS, contract, jacobian_slice
from benchmarks.floors import DataOnlyFloor, fastest_batch_size, sum_vectors, trace_vectors
from benchmarks.jobs import Job, KernelError, exact_kernel, jobs, kernel_error
from benchmarks.measure import Timing, alternate, timed, with_peak_memory
from benchmarks.peers import BATCH_SIZE, PEERS, per_sample_gradients
from benchmarks.workloads import Workload

THEIR_ERRORS = (ImportError, AttributeError, RuntimeError, TypeError, ValueError)
"""What other libraries raise when a model or a size is beyond them: a finding, not a reason to stop."""


@dataclass(frozen=True, slots=True)
class JobResult:
    """What one job took."""

    name: str
    """The job."""
    num_samples: int
    """N."""
    num_setup_samples: int
    """n, of the small call."""
    total: Timing
    """The whole call on N samples, preparation included."""
    setup: Timing
    """The same call on n samples: preparation of the model and little else."""
    floor: Timing
    """Forward and data-only backward passes on N samples, right before each of the calls."""
    peak_bytes: int | None
    """Growth of memory during the call, where it can be measured."""
    error: KernelError | None
    """Against the exact kernel; None for the exact kernel itself."""

    @property
    def ratio(self) -> float:
        """The whole call over the floor."""
        return self.total.median / self.floor.median

    @property
    def net_seconds(self) -> float:
        """What N samples cost once the model is prepared: the time of the N - n further samples, scaled to N."""
        further = self.num_samples - self.num_setup_samples
        return (self.total.median - self.setup.median) * self.num_samples / further

    @property
    def net_ratio(self) -> float:
        """Time without preparation over the floor."""
        return self.net_seconds / self.floor.median

    @property
    def net_is_rough(self) -> bool:
        """Whether the small call takes more than half of the whole one, so that the difference is mostly noise."""
        return self.setup.median > self.total.median / 2


@dataclass(frozen=True, slots=True)
class Alternative:
    """What another way to the result of a job would take."""

    name: str
    """The method."""
    job: str
    """The job it does."""
    seconds: float | None
    """For all N samples, extrapolated; None if it failed."""
    speedup: float | None
    """How many times longer it takes than ntkpipe's whole call."""
    note: str
    """What was measured and how it was extrapolated, or why there is no figure."""


@dataclass(frozen=True, slots=True)
class WorkloadResult:
    """All about one workload."""

    name: str
    """What the command line calls it."""
    title: str
    """What the report calls it."""
    num_samples: int
    """N."""
    num_parameters: int
    """P."""
    num_outputs: int
    """C."""
    floor_batch_size: int
    """The batch size at which the floor is lowest."""
    jobs: tuple[JobResult, ...]
    """ntkpipe."""
    alternatives: tuple[Alternative, ...]
    """The others."""


def measure_workload(workload: Workload, dim: int, repeats: int, with_peers: bool = False) -> WorkloadResult:
    """Measure all jobs of a workload, then the other ways to the same results."""
    vectors = {"trntk": trace_vectors, "pntk": sum_vectors}
    floors = {
        kernel: DataOnlyFloor(workload.model, make(workload.num_outputs, next(workload.model.parameters())))
        for kernel, make in vectors.items()
    }
    batch_size = fastest_batch_size(floors["trntk"], workload.inputs)
    results: list[JobResult] = []
    exact: dict[str, torch.Tensor] = {}
    for job in jobs(dim):
        _say(f"{workload.title}: {job.name}")
        measured, output = _measure_job(workload, job, floors[job.kernel], batch_size, repeats, exact)
        results.append(measured)
        if job.dim is None:
            exact[job.kernel] = output
    exact_result, projected_result, _ = results
    alternatives = [*_contractions(workload, exact_result, exact["trntk"])]
    if with_peers and workload.peers:
        alternatives.extend(_peers(workload, projected_result, dim))
    return WorkloadResult(
        name=workload.name,
        title=workload.title,
        num_samples=workload.num_samples,
        num_parameters=workload.num_parameters,
        num_outputs=workload.num_outputs,
        floor_batch_size=batch_size,
        jobs=tuple(results),
        alternatives=tuple(alternatives),
    )


def _measure_job(
    workload: Workload, job: Job, floor: DataOnlyFloor, batch_size: int, repeats: int, exact: dict[str, torch.Tensor]
) -> tuple[JobResult, torch.Tensor]:
    """Return the figures, and what the job computes."""
    inputs, device = workload.inputs, workload.inputs.device
    num_setup = min(4, len(inputs) // 2)
    run_setup = partial(job.run, workload.model, inputs[:num_setup])
    run_total = partial(job.run, workload.model, inputs)
    run_floor = partial(floor.run, inputs, batch_size)
    run_setup()  # warm, so that memory does not count what is imported
    output, peak_bytes = with_peak_memory(run_total, device)
    error = None
    if job.dim is not None:
        if job.kernel not in exact:
            exact[job.kernel] = exact_kernel(job.kernel, workload.model, inputs)
        error = kernel_error(output, exact[job.kernel])
    run_floor()  # warm
    timings = alternate({"floor": run_floor, "setup": run_setup, "total": run_total}, repeats, device)
    return JobResult(job.name, len(inputs), num_setup, **timings, peak_bytes=peak_bytes, error=error), output


def _contractions(workload: Workload, result: JobResult, exact_NN: torch.Tensor) -> Iterator[Alternative]:
    """Yield explicit Jacobians, contracted: the time per sample and the time per pair are extrapolated separately."""
    inputs, device = workload.inputs, workload.inputs.device
    num_samples, num_columns = len(inputs), workload.num_outputs * workload.num_parameters
    num_measured = min(workload.num_baseline_samples, num_samples)
    part = jacobian_slice(num_samples, num_columns, device)
    contract(part)  # warm
    slice_seconds = statistics.median(timed(partial(contract, part), device)[1] for _ in range(3))
    share = part["slice"].shape[1] / num_columns
    for name, jacobian_of in METHODS.items():
        _say(f"{workload.title}: {name}")
        try:
            jacobian_of(workload.model, inputs[:1])  # warm
            jacobian, seconds = timed(partial(jacobian_of, workload.model, inputs[:num_measured]), device)
        except THEIR_ERRORS as error:
            yield Alternative(name, result.name, None, None, f"failed: {_first_line(error)}")
            continue
        cosines_NN = kernel_cosines(contract(jacobian, torch.float64))
        difference = float((cosines_NN - exact_NN[:num_measured, :num_measured]).abs().max())
        del jacobian  # gigabytes
        whole = seconds * num_samples / num_measured + slice_seconds / share
        yield Alternative(
            name,
            result.name,
            whole,
            whole / result.total.median,
            f"extrapolated from {num_measured} samples: their Jacobians took {seconds:.3g} s; contracting "
            f"{share:.2%} of the columns for all {num_samples} took {slice_seconds:.3g} s. "
            f"Largest difference from ntkpipe {difference:.1e}.",
        )


def _peers(workload: Workload, result: JobResult, dim: int) -> Iterator[Alternative]:
    """Yield dense projections of other packages: one batch of gradients of one output, times batches and outputs."""
    inputs, device = workload.inputs, workload.inputs.device
    rows = min(BATCH_SIZE, len(inputs))
    scale = workload.num_outputs * len(inputs) / rows
    _say(f"{workload.title}: vmap(grad)")
    per_sample_gradients(workload.model, inputs[:2])  # warm
    gradients_BP, gradient_seconds = timed(partial(per_sample_gradients, workload.model, inputs[:rows]), device)
    for peer in PEERS:
        name = f"vmap(grad) and {peer.title}"
        if not peer.installed:
            yield Alternative(name, result.name, None, None, f"{peer.package} is not installed")
            continue
        _say(f"{workload.title}: {peer.title}")
        try:
            project = peer.make(gradients_BP.shape[1], dim, device)
            _, seconds = timed(partial(project, gradients_BP), device)
        except THEIR_ERRORS as error:
            yield Alternative(name, result.name, None, None, f"failed: {_first_line(error)}")
            continue
        whole = (gradient_seconds + seconds) * scale
        yield Alternative(
            name,
            result.name,
            whole,
            whole / result.total.median,
            f"extrapolated from one batch of {rows} samples and one of {workload.num_outputs} outputs: gradients "
            f"{gradient_seconds:.3g} s, projection {seconds:.3g} s.",
        )


def kernel_cosines(kernel_NN: torch.Tensor) -> torch.Tensor:
    """Return a kernel divided by its own norms."""
    norms_N = kernel_NN.diagonal().sqrt()
    return kernel_NN / (norms_N[:, None] * norms_N)


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:120]}"


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
