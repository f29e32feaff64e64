"""Questions that are asked again and again, to somebody who may not answer."""

import threading

from processes import wait_for

from ntkpipe.pipeline.executors.asking import Asking


def test_the_latest_answer_is_at_hand():
    answers = iter([["a"], ["a", "b"]])
    with Asking(lambda: next(answers, ["c"]), 0.01) as asking:
        wait_for(lambda: asking.answer == {"c"}, pause=0.001)
    assert asking.trouble is None


def test_before_the_first_answer_there_is_none_and_nobody_waits_for_it():
    hold = threading.Event()
    with Asking(lambda: hold.wait(60) and [], 0.01) as asking:
        assert asking.answer == frozenset()
        hold.set()


def test_a_question_that_fails_is_asked_again_and_the_first_reason_is_kept():
    turns = iter([ValueError("one"), ValueError("two"), None])

    def question():
        error = next(turns, None)
        if error is not None:
            raise error
        return ["a"]

    with Asking(question, 0.01) as asking:
        wait_for(lambda: asking.answer, pause=0.001)
    assert asking.trouble == "ValueError: one"


def test_an_answer_stays_when_a_later_question_fails():
    turns = iter([["a"]])
    with Asking(lambda: next(turns), 0.01) as asking:
        wait_for(lambda: asking.trouble, pause=0.001)
    assert asking.answer == {"a"}
    assert asking.trouble.startswith("StopIteration")


def test_nothing_is_asked_after_the_end():
    asked = []
    with Asking(lambda: asked, 0.001) as asking:
        wait_for(lambda: asking._thread.is_alive())
    assert not asking._thread.is_alive()


def test_a_question_that_is_never_answered_holds_nobody_up_for_long(monkeypatch):
    monkeypatch.setattr("ntkpipe.pipeline.executors.asking.JOIN_SECONDS", 0.05)
    hold = threading.Event()
    with Asking(lambda: hold.wait(60) and [], 0.01) as asking:
        pass
    assert asking._thread.is_alive()
    hold.set()
    asking._thread.join(60)
