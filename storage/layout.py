"""The names of everything in a run, in one place.

::

    <run>/run.json                          what the run is, written once
         /data.zarr/                        one zarr v3 group
             sample_id/<split>              (N,) ids
             label/<split>                  (N,) classes or (N, T) real targets
             output/<split>                 (N, C) outputs of the network
             moments/<kernel>               (P,) second moments of gradients, for preconditioning
             features/<kernel>/<split>      (N, K), or (G, N, K) when layerwise
             diagonal/<kernel>/<split>      (N,) exact K(x, x) before any normalisation; (N, C) for pairs with outputs
             kernel/<kernel>/<rows>-<cols>  (N, M); lower-triangle blocks when it is symmetric
             component/<kernel>/<rows>-<cols>  (G, N, M), summing to the kernel
             statistic/<kernel>/<split>     (N, S) of a derived kernel: means, or coordinates in a posterior
             factor/<name>                  (N, N) lower triangular Cholesky factor, in tiles
             solution/<name>                (N, T) coefficients
             prediction/<name>/<split>      (M, T) kernel times coefficients
                                            outputs, moments, features, diagonals, kernels and components of a model
                                            with several members have them as their first axis
         /receipts/<stage>/<task>.json      the commit of a task, written once
         /segments/<epoch>-<n>.jsonl        many receipts in one object, which take the place of their own ones
         /failed/<stage>/<task>-<n>.json    what went wrong with an attempt
         /factors/<name>.json               where a factorisation met a negative pivot, if it did
         /solutions/<name>.json             residuals and statistics of a solution
         /solutions/<name>/<what>.npy       what else its solver found, such as a ridge path
         /solver/<name>/                    where an unfinished solver is; deleted when the solution is committed
         /analyses/<name>/                  summary.json, table.csv, picture.png
         /lock/epoch-000001.json            who owned the run, written once per tenure
         /lock/heartbeat-000001.json        their last sign of life
         /events/000001/000001.jsonl        what happened in that tenure, in segments
         /jobs/<submission id>.json         a job that was to drive the run on a cluster, written once
         /status.json                       how fast the run is; overwritten by whoever drives it
"""

MANIFEST = "run.json"
DATA = "data.zarr"
RECEIPTS = "receipts"
SEGMENTS = "segments"
SEGMENT_SUFFIX = ".jsonl"
FAILED = "failed"
SOLVER = "solver"
FACTORS = "factors"
SOLUTIONS = "solutions"
ANALYSES = "analyses"
LOCK = "lock"
JOBS = "jobs"
EVENTS = "events"
STATUS = "status.json"


def sample_id(split: str) -> str:
    """Return the array of a split's sample ids."""
    return f"sample_id/{split}"


def label(split: str) -> str:
    """Return the array of a split's labels."""
    return f"label/{split}"


def output(split: str) -> str:
    """Return the array of the network's outputs on a split."""
    return f"output/{split}"


def moments(kernel: str) -> str:
    """Return the array of second moments that a kernel's gradients are scaled by."""
    return f"moments/{kernel}"


def statistic(kernel: str, split: str) -> str:
    """Return the array of what a derived kernel keeps per sample."""
    return f"statistic/{kernel}/{split}"


def features(kernel: str, split: str) -> str:
    """Return the array of a kernel's features on a split."""
    return f"features/{kernel}/{split}"


def diagonal(kernel: str, split: str) -> str:
    """Return the array of a kernel's exact diagonal on a split."""
    return f"diagonal/{kernel}/{split}"


def kernel(name: str, pair: str) -> str:
    """Return the array of a kernel matrix."""
    return f"kernel/{name}/{pair}"


def component(name: str, pair: str) -> str:
    """Return the array of a kernel matrix's components per parameter."""
    return f"component/{name}/{pair}"


def factor(name: str) -> str:
    """Return the array of a solution's Cholesky factor."""
    return f"factor/{name}"


def factor_failure(name: str) -> str:
    """Return the object that says that a matrix is not positive definite."""
    return f"{FACTORS}/{name}.json"


def solution(name: str) -> str:
    """Return the array of a solution's coefficients."""
    return f"solution/{name}"


def prediction(name: str, split: str) -> str:
    """Return the array of a solution's predictions on a split."""
    return f"prediction/{name}/{split}"


def solution_record(name: str) -> str:
    """Return the object with a solution's residuals and statistics."""
    return f"{SOLUTIONS}/{name}.json"


def solution_extra(name: str, what: str) -> str:
    """Return the object with something else that a solver found."""
    return f"{SOLUTIONS}/{name}/{what}.npy"


def solver(name: str) -> str:
    """Return the folder in which a solution's solver keeps where it is."""
    return f"{SOLVER}/{name}"


def solver_constants(name: str) -> str:
    """Return the object with what no step of a solver changes."""
    return f"{solver(name)}/constants"


def solver_states(name: str) -> str:
    """Return the folder of a solver's states."""
    return f"{solver(name)}/states"


def solver_state(name: str, position: int) -> str:
    """Return one state of a solver."""
    return f"{solver_states(name)}/{position:012d}"


def solver_parts(name: str) -> str:
    """Return the folder of what other processes add to a solver's steps."""
    return f"{solver(name)}/parts"


def solver_part(name: str, position: int, part: int) -> str:
    """Return one part of the step after a state."""
    return f"{solver_parts(name)}/{position:012d}-{part:06d}"


def solver_progress(name: str) -> str:
    """Return the object that tells how far a solver is, and how long it will take."""
    return f"{solver(name)}/progress.json"


def analysis(name: str, file: str) -> str:
    """Return an object that an analysis leaves."""
    return f"{ANALYSES}/{name}/{file}"


def receipt(stage: str, task: str) -> str:
    """Return the object that commits a task."""
    return f"{RECEIPTS}/{stage}/{task}.json"


def receipt_name(key: str) -> tuple[str, str] | None:
    """Return stage and task of an object that commits a task, None for one that does not."""
    stage, _, task = key.removeprefix(f"{RECEIPTS}/").removesuffix(".json").partition("/")
    return (stage, task) if task and key.endswith(".json") else None


def segment(epoch_number: int, number: int) -> str:
    """Return the object that holds many receipts."""
    return f"{SEGMENTS}/{epoch_number:06d}-{number:06d}{SEGMENT_SUFFIX}"


def segment_epoch(key: str) -> int:
    """Return the epoch of a segment's object; 0 for one of another name."""
    number = key.removeprefix(f"{SEGMENTS}/").partition("-")[0]
    return int(number) if number.isdecimal() else 0


def segment_number(key: str) -> int:
    """Return the number of a segment's object within its epoch; 0 for one of another name."""
    number = key.removesuffix(SEGMENT_SUFFIX).rpartition("-")[2]
    return int(number) if number.isdecimal() else 0


def failure(stage: str, task: str, epoch: int, attempt: int) -> str:
    """Return the object that records a failed attempt."""
    return f"{FAILED}/{stage}/{task}-{epoch:06d}-{attempt}.json"


def epoch(number: int) -> str:
    """Return the object that claims an epoch."""
    return f"{LOCK}/epoch-{number:06d}.json"


def heartbeat(number: int) -> str:
    """Return the object that its owner renews."""
    return f"{LOCK}/heartbeat-{number:06d}.json"


def events(epoch_number: int, segment: int) -> str:
    """Return a segment of the event log of an epoch."""
    return f"{EVENTS}/{epoch_number:06d}/{segment:06d}.jsonl"


def job(submission_id: str) -> str:
    """Return the object that tells of a submitted job."""
    return f"{JOBS}/{submission_id}.json"
