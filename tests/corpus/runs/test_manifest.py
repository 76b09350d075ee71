"""Problems of listing, which may be kept on disk."""

from sctok.corpus.runs.manifest import Failure, ListingProblems


def test_problems_keep_their_order_and_the_last_reason():
    listed = ListingProblems()
    for key, reason in (("b", "1"), ("a", "2"), ("\udcff", "3"), ("b", "4")):
        listed.add(Failure(key, "p", reason))
    assert [(failure.key, failure.reason) for failure in listed] == [("b", "4"), ("a", "2"), ("\udcff", "3")]


def test_an_input_resolves_its_own_problem_and_those_of_its_tar():
    listed = ListingProblems()
    for failure in (
        Failure("", "t.tar", "cut"),
        Failure("a", "t.tar", "x"),
        Failure("b", "t.tar", "y"),
        Failure("", "u.tar", "z"),
    ):
        listed.add(failure)
    listed.resolve("a", "t.tar")
    assert [(failure.key, failure.path) for failure in listed] == [("b", "t.tar"), ("", "u.tar")]
