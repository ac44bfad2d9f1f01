"""Answers are found by where prompts end and where generation stops, and any other mask than theirs is a fault."""

from hypothesis import given
from hypothesis import strategies as st

from prep.answers import Answer, Fault, answer_from, answers_behind, mask_faults

STOPS = {8, 9}


def test_an_answer_ends_at_its_first_stop_token_and_those_right_behind_it() -> None:
    assert answer_from([1, 2, 8, 3], 1, 4, STOPS, trained=True) == Answer(1, 2, 3)
    assert answer_from([1, 2, 8, 9, 8], 1, 5, STOPS, trained=True) == Answer(1, 2, 4)  # none of them twice
    assert answer_from([1, 2, 3, 8], 1, 3, STOPS, trained=False) == Answer(1, 3, 3, trained=False)
    assert not answer_from([1, 2, 3], 1, 3, STOPS, trained=True).is_closed


def test_answers_are_found_behind_their_header() -> None:
    tokens = [4, 5, 1, 8, 2, 4, 5, 3, 3, 4, 5, 7, 8]
    assert answers_behind(tokens, [4, 5], STOPS) == [Answer(2, 3, 4), Answer(7, 9, 9), Answer(11, 12, 13)]
    assert answers_behind([1, 2], [4, 5], STOPS) == []


@st.composite
def masks(draw: st.DrawFn) -> tuple[list[bool], list[Answer], bool]:
    """A mask, answers, and whether their ends are trained; often right."""
    answers: list[Answer] = []
    at = draw(st.integers(1, 3))
    while at < 20 and draw(st.booleans()):
        stop = at + draw(st.integers(1, 4))
        end = stop + draw(st.integers(0, 2))
        answers.append(Answer(at, stop, end, draw(st.booleans())))
        at = end + draw(st.integers(1, 3))
    end_of_turn = draw(st.booleans())
    mask = expected(answers, at + 2, end_of_turn)
    for _ in range(draw(st.integers(0, 3))):
        place = draw(st.integers(0, len(mask) - 1))
        mask[place] = not mask[place]
    return mask, answers, end_of_turn


def expected(answers: list[Answer], size: int, end_of_turn: bool) -> list[bool]:
    trained = {at for one in answers if one.trained for at in range(one.begin, one.end if end_of_turn else one.stop)}
    return [at in trained for at in range(size)]


@given(masks())
def test_a_mask_has_faults_if_and_only_if_it_is_another_than_it_should_be(
    case: tuple[list[bool], list[Answer], bool],
) -> None:
    mask, answers, end_of_turn = case
    right = expected(answers, len(mask), end_of_turn)
    faults = list(mask_faults(mask, answers, end_of_turn=end_of_turn))
    assert bool(faults) == (mask[1:] != right[1:])
    for fault in faults:
        assert 0 <= fault.begin < fault.end <= len(mask)
        assert -1 <= fault.answer < len(answers)


def test_a_shifted_mask_is_told_from_other_faults() -> None:
    answers = [Answer(2, 4, 5), Answer(8, 10, 11)]
    right = expected(answers, 14, True)
    assert [*mask_faults([False, *right[:-1]], answers, end_of_turn=True)] == [Fault("mask-late", -1, 3, 14)]
    assert [*mask_faults([*right[1:], False], answers, end_of_turn=True)] == [Fault("mask-early", -1, 1, 14)]
    untrained_end = [at not in (4,) and one for at, one in enumerate(right)]
    assert [*mask_faults(untrained_end, answers, end_of_turn=True)] == [Fault("end-untrained", 0, 4, 5)]
    assert [one.kind for one in mask_faults(right, answers, end_of_turn=False)] == ["end-trained", "end-trained"]
