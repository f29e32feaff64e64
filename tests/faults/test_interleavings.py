"""Random interleavings of everything that can be done with runs and happen to them, against a model in memory.

``NTKPIPE_INTERLEAVINGS=N`` plays N random ones instead of the same few every time.
"""

import os
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp

import growing
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test
from interleaving import Spec, bury, check_readings, damage, trapped, truth_of
from interruptions import Killed
from runs import chunk_hashes

import ntkpipe
from ntkpipe.configs.errors import NtkPipeError, RunLockedError
from ntkpipe.pipeline import upkeep
from ntkpipe.pipeline.plan import stages
from ntkpipe.storage import layout
from ntkpipe.storage import ledger as ledger_module
from ntkpipe.storage.arrays import ChunkStore
from ntkpipe.storage.features import PREPARE_STAGE
from ntkpipe.storage.ledger import Ledger
from ntkpipe.storage.locks import current_epoch
from ntkpipe.storage.schema import array_specs
from ntkpipe.storage.stores.files import PARTIAL
from ntkpipe.storage.stores.registry import open_store

pytestmark = [pytest.mark.slow, pytest.mark.timeout(0)]

CAMPAIGN = int(os.environ.get("NTKPIPE_INTERLEAVINGS", "0"))
EXAMPLES = CAMPAIGN or 15
SHRINK = "NTKPIPE_SHRINK" in os.environ
STEPS = 12
MAX_RUNS = 3
NUMS, RIDGES = (3, 4, 5, 6), (1.0, 3.0)

RUNTIME = st.sampled_from(
    [
        [],
        ["resources.max_attempts=1"],
        ["resources.checkpoint_seconds=30"],
        ["store.fsync=true"],
        ["resources.max_worker_bytes=2GiB", "resources.task_seconds=100"],
    ]
)
HOW = st.sampled_from(["flip", "truncate", "delete"])
ACTIONS = st.sampled_from(["none", "kill", "kill", "kill", "fail", "steal", "read", "read"])
PLACES = st.one_of(st.sampled_from(range(40)), st.sampled_from(range(320)), st.sampled_from(range(320)))
"""At which write; a run of five samples makes some hundred and fifty, each of which counts twice."""


def is_whole(path):
    """Return whether a path is a file that nobody was writing to when he was killed."""
    return path.is_file() and path.suffix != PARTIAL


@dataclass
class Model:
    """What is known of a run without looking at it."""

    root: Path
    spec: Spec
    damage: set[tuple[str, str]] = field(default_factory=set)
    """Tasks that a verification must find."""
    doubtful: set[tuple[str, str]] = field(default_factory=set)
    """Tasks that it may find: they were damaged in the run that they may have been taken from, or are being repaired."""
    lost_segments: bool = False

    @property
    def exists(self) -> bool:
        return (self.root / layout.MANIFEST).exists()

    @property
    def sound(self) -> bool:
        return not (self.damage or self.doubtful or self.lost_segments)

    def forget(self) -> None:
        """Count what is damaged as doubtful: somebody may have begun to repair it."""
        self.doubtful |= self.damage
        self.damage = set()


DONE: Counter[str] = Counter()
"""What was done, and what happened, how often."""


class Interleavings(RuleBasedStateMachine):
    """Runs, what is done with them, and what happens at any of their writes."""

    def __init__(self):
        super().__init__()
        self.folder = Path(mkdtemp(prefix="ntkpipe-interleavings-"))
        self.runs: list[Model] = []
        self.traps = trapped()
        self.trap = self.traps.__enter__()
        self.patch = pytest.MonkeyPatch()

    @initialize(compacting=st.booleans(), spec=st.builds(Spec, st.sampled_from(NUMS), st.sampled_from(RIDGES)))
    def choose_how_receipts_are_kept(self, compacting, spec):
        if compacting:
            self.patch.setattr(Ledger.compact, "__kwdefaults__", {"beyond": 3, "per_segment": 3})
            self.patch.setattr(ledger_module, "SEGMENT_RECEIPTS", 3)
            self.patch.setattr(ledger_module, "MANY_RECEIPTS", 2)
        self.compacting = compacting

    def carry_out(self, model, verb, action, at):
        """Do something that writes, while something else happens; return whether it came to its end."""
        DONE[verb.__name__] += 1
        ended = False
        try:
            if action == "none":
                verb()
            else:
                with self.trap.armed(action, at, lambda: check_readings(model.root, model.spec)):
                    verb()
            ended = True
        except Killed:
            DONE["killed"] += 1
        except RunLockedError:
            assert action == "steal"
            DONE["superseded"] += 1
        except NtkPipeError as error:
            if action != "fail" and model.sound:
                raise
            DONE[f"ended by {error.kind}"] += 1
        finally:
            # The process of a driver ends with it, whatever it has still been able to say.
            bury(model.root)
        return ended

    def add(self, spec):
        model = Model(self.folder / str(len(self.runs)), spec)
        self.runs.append(model)
        return model

    def pick(self, number):
        return self.runs[number % len(self.runs)]

    @precondition(lambda self: len(self.runs) < 2)
    @rule(num=st.sampled_from(NUMS), ridge=st.sampled_from(RIDGES), action=ACTIONS, at=PLACES)
    def start(self, num, ridge, action, at):
        model = self.add(Spec(num, ridge))

        def start():
            ntkpipe.run(growing.config(num_test=2), model.root, overrides=model.spec.overrides())

        if self.carry_out(model, start, action, at) and action != "steal":
            self.check_finished(model)

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 9), runtime=RUNTIME, action=ACTIONS, at=PLACES)
    def resume(self, number, runtime, action, at):
        model = self.pick(number)

        def resume():
            if model.exists:
                ntkpipe.resume(model.root, overrides=runtime)
            else:
                ntkpipe.run(growing.config(num_test=2), model.root, overrides=model.spec.overrides())

        if self.carry_out(model, resume, action, at) and model.sound and action != "steal":
            self.check_finished(model)

    @precondition(lambda self: 0 < len(self.runs) < MAX_RUNS)
    @rule(number=st.integers(0, 9), more=st.integers(1, 2), ridge=st.sampled_from(RIDGES), action=ACTIONS, at=PLACES)
    def extend_or_fork(self, number, more, ridge, action, at):
        origin = self.pick(number)
        if not origin.exists:
            return
        grows = origin.spec.num + more <= max(NUMS)
        spec = Spec(origin.spec.num + more, origin.spec.ridge) if grows else Spec(origin.spec.num, ridge)
        model = self.add(spec)
        model.doubtful = origin.damage | origin.doubtful

        def extend():
            ntkpipe.extend(origin.root, model.root, overrides=spec.overrides())

        def fork():
            ntkpipe.fork(origin.root, model.root, overrides=spec.overrides())

        before = chunk_hashes(origin.root)
        ended = self.carry_out(model, extend if grows else fork, action, at)
        assert chunk_hashes(origin.root) == before
        if ended and model.sound and action != "steal":
            self.check_finished(model)

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 9))
    def verify(self, number):
        model = self.pick(number)
        if model.exists:
            DONE["verify"] += 1
            self.check_findings(model, ntkpipe.verify(model.root))

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 9), action=st.sampled_from(["none", "none", "kill", "fail"]), at=st.integers(0, 12))
    def repair(self, number, action, at):
        model = self.pick(number)
        if not model.exists:
            return
        findings = []

        def repair():
            findings.extend(ntkpipe.verify(model.root, repair=True))

        if self.carry_out(model, repair, action, at):
            self.check_findings(model, findings)
            model.damage, model.doubtful, model.lost_segments = set(), set(), False
        else:
            model.forget()

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 9), how=HOW, which=st.integers(0, 999), where=st.integers(0, 9999))
    def damage_a_chunk(self, number, how, which, where):
        self.corrupt(self.pick(number), "chunk", how, which, where)

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 9), how=HOW, which=st.integers(0, 999), where=st.integers(0, 9999))
    def damage_a_receipt(self, number, how, which, where):
        self.corrupt(self.pick(number), "receipt", how, which, where)

    @precondition(lambda self: self.runs and self.compacting)
    @rule(number=st.integers(0, 9), how=HOW, which=st.integers(0, 999), where=st.integers(0, 9999))
    def damage_a_segment(self, number, how, which, where):
        self.corrupt(self.pick(number), "segment", how, which, where)

    @precondition(lambda self: self.runs)
    @rule(
        number=st.integers(0, 9),
        what=st.sampled_from(["object", "state", "sign of life"]),
        how=HOW,
        which=st.integers(0, 999),
        where=st.integers(0, 9999),
    )
    def damage_something_else(self, number, what, how, which, where):
        self.corrupt(self.pick(number), what, how, which, where)

    def corrupt(self, model, what, how, which, where):
        """Damage a file that counts."""
        if not model.exists or model.lost_segments:
            return
        kinds = {"state": self.states, "segment": self.segments, "sign of life": self.signs_of_life}
        found = kinds.get(what, self.written)(model, what)
        if not found:
            return
        path, task = found[which % len(found)]
        DONE[f"{how} of a {what}"] += 1
        damage(path, how, where)
        if what == "sign of life":
            self.let_lease_pass(model.root / layout.LOCK)
        elif what == "segment":
            # Without a segment its tasks are not done; a damaged one is found.
            model.lost_segments = how != "delete"
            model.forget()
        elif what == "receipt" and how == "delete":
            model.damage.discard(task)
            model.doubtful.discard(task)
        elif task is not None:
            model.damage.add(task)

    @precondition(lambda self: self.runs)
    @rule(
        number=st.integers(0, 9),
        action=st.sampled_from(["none", "none", "kill", "fail", "steal"]),
        at=st.integers(0, 12),
    )
    def collect_garbage(self, number, action, at):
        model = self.pick(number)
        if not model.exists:
            return

        def gc():
            upkeep.gc(model.root)

        if self.carry_out(model, gc, action, at):
            assert not open_store(model.root).debris()

    def written(self, model, what):
        """Return the files of committed tasks, with the task that each of them belongs to."""
        store = open_store(model.root)
        ledger, geometry = Ledger(store), ntkpipe.open_run(model.root).manifest.geometry
        chunks, found = ChunkStore(store, specs=array_specs(geometry)), []
        for stage in (PREPARE_STAGE, *stages(geometry)):
            for entry in ledger.entries(stage):
                task = (stage, entry.task)
                if task in model.damage or task in model.doubtful or entry.receipt is None:
                    continue
                if what == "receipt":
                    keys = [layout.receipt(stage, entry.task)]
                elif what == "chunk":
                    keys = [chunks.key(record.array, record.position) for record in entry.receipt.chunks]
                else:
                    keys = [record.key for record in entry.receipt.objects]
                found += [(model.root / key, task) for key in keys]
        return [(path, task) for path, task in found if path.exists()]

    def states(self, model, what):
        return [(path, None) for path in sorted((model.root / "solver").rglob("*")) if is_whole(path)]

    def let_lease_pass(self, folder):
        """Let everything that a driver has said be a day old."""
        for path in folder.iterdir():
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 86400))

    def signs_of_life(self, model, what):
        """Return the heartbeat of a driver that has released its run; without it nobody knows that it is free."""
        epoch = current_epoch(open_store(model.root))
        path = model.root / layout.heartbeat(epoch)
        return [(path, None)] if path.exists() else []

    def segments(self, model, what):
        return [(path, None) for path in sorted((model.root / layout.SEGMENTS).rglob("*")) if is_whole(path)]

    @precondition(lambda self: self.runs)
    @rule(number=st.integers(0, 9))
    def read(self, number):
        model = self.pick(number)
        DONE["read"] += 1
        check_readings(model.root, model.spec)

    def check_findings(self, model, checks):
        found = {(finding.stage, finding.task) for checked in checks for finding in checked.findings}
        if model.lost_segments:
            assert found
            return
        assert model.damage <= found <= model.damage | model.doubtful
        model.damage, model.doubtful = found, set()

    def check_finished(self, model):
        truth = truth_of(model.spec)
        run = ntkpipe.open_run(model.root)
        assert run.status().state == "finished"
        found = {key: text for key, text in chunk_hashes(model.root).items() if not key.endswith(PARTIAL)}
        assert found == truth.hashes
        assert not self.states(model, "state")
        DONE["bytes compared"] += truth.num_bytes
        DONE["compared"] += 1

    def teardown(self):
        """Bring every run to its end."""
        try:
            for model in self.runs:
                if not model.exists:
                    ntkpipe.run(growing.config(num_test=2), model.root, overrides=model.spec.overrides())
                # Damage that stops a run may hide more of it: what was taken over last was not there to be found before.
                for _ in range(3):
                    list(ntkpipe.verify(model.root, repair=True))
                    ntkpipe.resume(model.root)
                    if not any(checked.findings for checked in ntkpipe.verify(model.root)):
                        break
                assert not any(checked.findings for checked in ntkpipe.verify(model.root))
                self.check_finished(model)
                upkeep.gc(model.root)
                assert not open_store(model.root).debris()
                assert chunk_hashes(model.root) == truth_of(model.spec).hashes
                assert not any(checked.findings for checked in ntkpipe.verify(model.root))
                DONE["runs"] += 1
        finally:
            self.patch.undo()
            self.traps.__exit__(None, None, None)
            DONE.update(self.trap.met)
            shutil.rmtree(self.folder)


def test_every_interleaving_ends_with_the_bytes_of_an_undisturbed_run(fault_table):
    phases = (Phase.generate, Phase.shrink) if SHRINK else (Phase.generate,)
    run_state_machine_as_test(
        Interleavings,
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            deadline=None,
            derandomize=not CAMPAIGN,
            database=None,
            phases=phases,
            suppress_health_check=list(HealthCheck),
            print_blob=False,
        ),
    )
    for what, number in sorted(DONE.items()):
        print(f"{number:8,} {what}")
    fault_table.add(
        "random interleavings of kills, damage and verbs", DONE["runs"], DONE["runs"], DONE["bytes compared"]
    )
