"""The moments stage: second moments of the gradients of the loss, for kernels that are preconditioned with them."""

from collections.abc import Iterator

import torch

from ntkpipe.configs.errors import NumericalError
from ntkpipe.configs.kernels.empirical import EmpiricalKernel
from ntkpipe.storage import layout
from ntkpipe.storage.grid import Shard, shards
from ntkpipe.workers.context import WorkerContext
from ntkpipe.workers.jacobians.engine import Factors, Portion
from ntkpipe.workers.jacobians.functionals import Functional
from ntkpipe.workers.kernels.preconditioning import mean_squares
from ntkpipe.workers.tasks import MomentsTask, Written

LOSS = Functional("loss")


def compute(context: WorkerContext, task: MomentsTask) -> Written:
    """Write the diagonal of the empirical Fisher matrix, for every member of the model. Memory is O(P).

    Raises:
        NumericalError: A gradient overflows.
    """
    kernel = next(kernel for kernel in context.spec.config.model_kernels if kernel.label == task.kernel)
    records, names = [], list(context.kernels.weights(kernel))
    members = context.spec.geometry.kernel(task.kernel).members
    for position, member in enumerate(members or ("",)):
        moments = mean_squares(_batches(context, kernel, member, names))
        moments_P = torch.cat([moments[name] for name in names]).cpu()
        if not bool(torch.isfinite(moments_P).all()):
            raise NumericalError(f"kernel {task.kernel!r}: a gradient of the loss overflows; try model.dtype=float64.")
        path = layout.moments(task.kernel)
        if members:
            records.append(context.chunks.write(path, (position, 0), moments_P.numpy()[None]))
        else:
            records.append(context.chunks.write(path, (0,), moments_P.numpy()))
    return Written(tuple(records))


def _batches(context: WorkerContext, kernel: EmpiricalKernel, member: str, names: list[str]) -> Iterator[Factors]:
    """Yield the gradients of the loss at evenly spaced training samples."""
    assert kernel.precondition is not None
    geometry, engine = context.spec.geometry, context.engine(member)
    split = geometry.train_split
    num_samples = geometry.splits[split].num_samples
    wanted = min(kernel.precondition.samples, num_samples)
    positions = torch.arange(wanted) * num_samples // wanted
    for shard in shards(split, num_samples, context.passes.batch_size):
        inside = positions[(positions >= shard.start) & (positions < shard.stop)] - shard.start
        if not len(inside):
            continue
        ((inputs, labels),) = context.batches(Shard(split, 0, shard.start, shard.stop))
        at = inside.to(inputs.device)
        jacobian = engine.run(inputs[at], Portion(frozenset({LOSS})), None if labels is None else labels[at])
        yield {name: jacobian.factors[LOSS][name] for name in names}
