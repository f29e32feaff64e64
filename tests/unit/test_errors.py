"""The error tree is part of the public surface."""

import pickle

import pytest

from ntkpipe.configs import errors


def all_errors():
    found = [errors.NtkPipeError]
    for cls in found:
        found += cls.__subclasses__()
    return found


def test_the_tree_is_as_documented():
    tree = {cls.__name__: (cls.__bases__[0].__name__, cls.kind, cls.exit_code) for cls in all_errors()[1:]}
    assert tree == {
        "ConfigError": ("NtkPipeError", "config", 2),
        "TooLargeError": ("ConfigError", "too-large", 2),
        "PlanError": ("NtkPipeError", "plan", 2),
        "RunMismatchError": ("NtkPipeError", "run-mismatch", 2),
        "RunLockedError": ("NtkPipeError", "run-locked", 1),
        "StorageError": ("NtkPipeError", "storage", 1),
        "NotFoundError": ("StorageError", "not-found", 2),
        "CorruptChunkError": ("StorageError", "corrupt-chunk", 1),
        "ChunkNotReadyError": ("StorageError", "chunk-not-ready", 1),
        "NumericalError": ("NtkPipeError", "numerical", 1),
        "CoverageError": ("NtkPipeError", "coverage", 2),
        "TaskFailedError": ("NtkPipeError", "task-failed", 1),
        "RunStoppedError": ("NtkPipeError", "stopped", 143),
    }
    assert issubclass(errors.ConfigError, ValueError)
    assert issubclass(errors.NotFoundError, KeyError)


def test_every_class_is_named_in_the_module_docstring():
    for cls in all_errors():
        assert cls.__name__ in errors.__doc__


@pytest.mark.parametrize("cls", all_errors())
def test_errors_survive_the_way_from_a_worker(cls):
    error = pickle.loads(pickle.dumps(cls("what was found")))
    assert type(error) is cls
    assert str(error) == error.message == "what was found"
    assert type(errors.error_of_kind(cls.kind, "x")) is cls


def test_what_programs_need_of_an_error_survives_too():
    large = pickle.loads(pickle.dumps(errors.TooLargeError("too much", limit=3, asked=5)))
    early = pickle.loads(pickle.dumps(errors.ChunkNotReadyError("too early", tasks=("a", "b"))))
    assert (large.limit, large.asked, early.tasks) == (3, 5, ("a", "b"))


def test_an_unknown_kind_is_a_failed_task():
    assert type(errors.error_of_kind("segfault", "x")) is errors.TaskFailedError
