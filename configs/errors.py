"""Every error a user can meet, in one tree.

::

    NtkPipeError
    ├── ConfigError (ValueError)        what was asked for is not well-formed or not possible
    │   └── TooLargeError               more was asked for at once than may be
    ├── PlanError                       what was asked for cannot fit or cannot be scheduled
    ├── RunMismatchError                the run on storage is not the run that was asked for
    ├── RunLockedError                  another driver owns the run
    ├── StorageError                    storage refused, lost or damaged something
    │   ├── NotFoundError (KeyError)    no such run, kernel, sample id or block
    │   ├── CorruptChunkError           bytes differ from what was committed
    │   └── ChunkNotReadyError          the block has not been committed yet
    ├── NumericalError                  the numbers would be silently wrong
    ├── CoverageError                   a parameter or module cannot be differentiated per sample
    ├── TaskFailedError                 a task failed more often than it may
    └── RunStoppedError                 somebody asked the driver to stop

A message states what was found, what was expected, and what to do next. Errors are made of one string only, so that
they survive the trip from a remote worker unchanged; some also hold, for programs, numbers or names of their message. Secrets that others have put into it are redacted.
"""

from typing import ClassVar

from ntkpipe.configs.secrets import redacted


class NtkPipeError(Exception):
    """Base of all errors that a user can cause or must know about.

    Attributes:
        kind: Stable machine-readable name of the error class; also stored in failure records.
        exit_code: What the command line returns: 2 for bad input, 1 for a run that failed.
    """

    kind: ClassVar[str] = "error"
    exit_code: ClassVar[int] = 1

    def __init__(self, *args: object) -> None:
        super().__init__(*(redacted(arg) if isinstance(arg, str) else arg for arg in args))

    @property
    def message(self) -> str:
        """The text shown to the user."""
        return str(self.args[0]) if self.args else self.kind


class ConfigError(NtkPipeError, ValueError):
    """A configuration, argument or input file is not acceptable."""

    kind = "config"
    exit_code = 2


class TooLargeError(ConfigError):
    """More was asked for at once than may be.

    Attributes:
        limit: What may be asked for, in the unit that the message names; None where it is not known.
        asked: What was asked for, in the same unit.
    """

    kind = "too-large"

    def __init__(self, *args: object, limit: int | None = None, asked: int | None = None) -> None:
        super().__init__(*args)
        self.limit = limit
        self.asked = asked


class PlanError(NtkPipeError):
    """The plan cannot be carried out: it does not fit the disk or the machine."""

    kind = "plan"
    exit_code = 2


class RunMismatchError(NtkPipeError):
    """The stored run was made from another configuration, other weights, other data or other code."""

    kind = "run-mismatch"
    exit_code = 2


class RunLockedError(NtkPipeError):
    """Another driver holds the run's current epoch."""

    kind = "run-locked"
    exit_code = 1


class StorageError(NtkPipeError):
    """Storage could not be read or written."""

    kind = "storage"
    exit_code = 1


class NotFoundError(StorageError, KeyError):
    """What was asked for does not exist in this run."""

    kind = "not-found"
    exit_code = 2

    def __str__(self) -> str:
        # KeyError shows the repr of its argument, which would quote and escape the message.
        return self.message


class CorruptChunkError(StorageError):
    """Stored bytes differ from those that were committed, or are gone."""

    kind = "corrupt-chunk"


class ChunkNotReadyError(StorageError):
    """A chunk has no receipt yet; its content must not be used.

    Attributes:
        tasks: Ids of all tasks that are needed and not committed, where several were looked for at once; else empty.
    """

    kind = "chunk-not-ready"

    def __init__(self, *args: object, tasks: tuple[str, ...] = ()) -> None:
        super().__init__(*args)
        self.tasks = tasks


class NumericalError(NtkPipeError):
    """A computation would return wrong numbers without saying so."""

    kind = "numerical"


class CoverageError(NtkPipeError):
    """A trainable parameter or a module has no valid per-sample Jacobian."""

    kind = "coverage"
    exit_code = 2


class TaskFailedError(NtkPipeError):
    """A task failed on every attempt it was allowed."""

    kind = "task-failed"


class RunStoppedError(NtkPipeError):
    """The driver was told to stop; what was committed stays."""

    kind = "stopped"
    exit_code = 143


def error_of_kind(kind: str, message: str) -> NtkPipeError:
    """Return the error class of a stable kind with a message, as it was before it crossed a process boundary."""
    classes = [NtkPipeError]
    for cls in classes:
        if cls.kind == kind:
            return cls(message)
        classes += cls.__subclasses__()
    return TaskFailedError(message)
