"""What could not be listed, kept outside memory."""

from sctok.corpus.runs.complaints import Complaints
from sctok.corpus.runs.manifest import Failure


def test_complaints_keep_their_order_and_the_last_reason():
    listed = Complaints()
    for key, reason in (("b", "1"), ("a", "2"), ("\udcff", "3"), ("b", "4")):
        listed.add(Failure(key, "p", reason))
    assert [(failure.key, failure.reason) for failure in listed] == [("b", "4"), ("a", "2"), ("\udcff", "3")]


def test_an_input_takes_back_its_own_complaint_and_those_of_its_tar():
    listed = Complaints()
    for failure in (
        Failure("", "t.tar", "cut"),
        Failure("a", "t.tar", "x"),
        Failure("b", "t.tar", "y"),
        Failure("", "u.tar", "z"),
    ):
        listed.add(failure)
    listed.take_back("a", "t.tar")
    assert [(failure.key, failure.path) for failure in listed] == [("b", "t.tar"), ("", "u.tar")]
