"""What is guessed from a sequence's own past, and how many guesses its luck allows."""

from qianyan.engine.drafts import NGRAM_SIZES, RESTING_TOKENS, Drafts
from qianyan.engine.options import Sampling
from qianyan.engine.plan import Chunk
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled
from qianyan.engine.scheduler import EngineConfig, Scheduler


class Silent:
    """A decoder for tests that read no text."""

    def push(self, token_id: int) -> str:
        return ""

    def finish(self) -> str:
        return ""


def drafts(*token_ids: int, most: int = 8) -> Drafts:
    """A sequence whose last guesses all came true."""
    made = Drafts(most)
    made.extend(token_ids)
    made.note(most, most)
    return made


def test_what_followed_the_same_tokens_is_guessed() -> None:
    assert drafts(1, 2, 3, 4, 5, 6, 9, 1, 2, 3).propose(3) == (4, 5, 6)


def test_the_last_place_counts_and_longer_agreement_before_it() -> None:
    assert drafts(1, 2, 3, 7, 1, 2, 3, 8, 1, 2, 3).propose(1) == (8,)
    assert drafts(0, 1, 2, 3, 7, 9, 1, 2, 3, 8, 0, 1, 2, 3).propose(1) == (7,)


def test_short_agreement_guesses_nothing() -> None:
    assert min(NGRAM_SIZES) == 3
    assert drafts(1, 2, 7, 1, 2).propose(4) == ()
    assert drafts().propose(4) == ()


def test_a_period_goes_on_beyond_the_last_token() -> None:
    assert drafts(1, 2, 1, 2, 1, 2).propose(5) == (1, 2, 1, 2, 1)
    assert drafts(4, 4, 4, 4).propose(3) == (4, 4, 4)


def test_tokens_may_come_one_by_one() -> None:
    whole, grown = drafts(*[1, 2, 3, 4] * 4), drafts()
    for token_id in [1, 2, 3, 4] * 4:
        grown.extend([token_id])
    assert grown.num_known == 16
    assert grown.propose(6) == whole.propose(6)


def test_one_guess_comes_first_and_hits_double_them() -> None:
    made = Drafts(6)
    made.extend([7] * 20)
    for size in (1, 2, 4, 6, 6):
        assert len(made.propose(9)) == size
        made.note(size, size)


def test_after_misses_one_more_is_tried_than_came_true() -> None:
    made = drafts(*[7] * 20)
    made.note(8, 2)
    assert len(made.propose(8)) == 3
    made.note(3, 0)
    assert len(made.propose(8)) == 1
    made.note(0, 0)
    assert len(made.propose(8)) == 1


def test_a_single_miss_makes_them_rest() -> None:
    made = drafts(*[7] * 20)
    made.note(1, 0)
    made.extend([7] * (RESTING_TOKENS - 1))
    assert made.propose(8) == ()
    made.extend([7])
    assert made.propose(8) == (7,)


def request(max_tokens: int = 40, request_id: int = 1, **how: object) -> Request:
    sampling = Sampling(max_tokens=max_tokens, **how)  # type: ignore[arg-type]
    return Request(request_id, [1, 2, 3, 4, 5, 6] * 3, sampling, Reply(Silent()))


def step(scheduler: Scheduler, *token_ids: int) -> tuple[Chunk, list[Request]]:
    """Run one pass whose rows say these tokens, as far as they are asked."""
    plan = scheduler.plan()
    (chunk,) = plan.chunks
    rows, draws = iter(token_ids), plan.draws
    while draws:
        draws = scheduler.take(draws, [Sampled(token_id=next(rows)) for _ in draws])
    return chunk, scheduler.settle(plan)


def begin(asked: Request, **limits: int) -> Scheduler:
    limits = {"max_cache_tokens": 320, "max_draft_tokens": 4, **limits}
    scheduler = Scheduler(EngineConfig(**limits))
    scheduler.add(asked)
    step(scheduler, 1)
    asked.note_drafts(0, 0)
    asked.propose(0, limit=limits["max_draft_tokens"])
    asked.note_drafts(99, 99)  # as if all had come true so far
    return scheduler


def test_guesses_that_come_true_save_their_passes() -> None:
    asked = request()
    scheduler = begin(asked)
    chunk, _ = step(scheduler, 2, 3, 4, 5, 6)
    assert chunk.drafts == (2, 3, 4, 5)
    assert chunk.num_rows == 5
    assert chunk.token_ids == [1, 2, 3, 4, 5]
    assert asked.output_token_ids == [1, 2, 3, 4, 5, 6]
    assert asked.num_computed_tokens == asked.num_tokens - 1
    assert asked.num_forwarded_tokens == 2


def test_the_first_guess_that_fails_ends_the_run_and_is_computed_again() -> None:
    asked = request()
    scheduler = begin(asked)
    step(scheduler, 2, 3, 9)
    assert asked.output_token_ids == [1, 2, 3, 9]
    assert asked.num_computed_tokens == asked.num_tokens - 1
    chunk, _ = step(scheduler, 9)
    assert (chunk.start, chunk.token_ids) == (asked.num_tokens - 2, [9])


def test_a_run_ends_at_a_stop_token_and_at_the_length() -> None:
    asked = request(stop_token_ids=frozenset({3}))
    _, finished = step(begin(asked), 2, 3)
    assert finished == [asked]
    assert asked.output_token_ids == [1, 2, 3]
    short = request(max_tokens=4)
    chunk, finished = step(begin(short), 2, 3, 4)
    assert chunk.drafts == (2, 3)
    assert finished == [short]
    assert short.finish_reason == "length"


def test_guesses_share_a_pass_and_prompts_guess_nothing() -> None:
    scheduler = Scheduler(EngineConfig(max_cache_tokens=640, max_draft_tokens=6))
    for request_id in range(3):
        scheduler.add(request(request_id=request_id))
    plan = scheduler.plan()
    assert [chunk.drafts for chunk in plan.chunks] == [(), (), ()]
    draws = scheduler.take(plan.draws, [Sampled(token_id=1)] * 3)
    assert draws == []
    scheduler.settle(plan)
    assert [len(chunk.drafts) for chunk in scheduler.plan().chunks] == [1, 1, 1]
    for asked in scheduler.running:
        asked.note_drafts(2, 2)
    assert [len(chunk.drafts) for chunk in scheduler.plan().chunks] == [4, 0, 0]
    scheduler.drop(scheduler.running[:2])
    assert [len(chunk.drafts) for chunk in scheduler.plan().chunks] == [4]


def test_only_a_processor_guesses_unasked() -> None:
    assert EngineConfig().on("cpu").max_draft_tokens == 3
    assert EngineConfig().on("cuda").max_draft_tokens == 0
    assert EngineConfig(max_draft_tokens=7).on("cuda").max_draft_tokens == 7


def test_only_blocks_of_tokens_that_came_true_are_known() -> None:
    asked = request()
    named: list[list[int]] = []

    def name(start: int, token_ids: list[int], before: bytes) -> bytes:
        named.append(token_ids)
        return before + bytes(token_ids)

    asked.name_block = name
    scheduler = begin(asked, max_draft_tokens=16)
    step(scheduler, *[2, 3, 4, 5, 6, 1, 2, 3, 4], 0)
    step(scheduler, 0)
    step(scheduler, 0)
    tokens = asked.token_ids(0, asked.num_tokens)
    assert [tokens[start : start + 16] for start in range(0, 16 * len(named), 16)] == named


def test_guessing_nobody_asked_for_plans_no_rows_more() -> None:
    scheduler = begin(request(), max_draft_tokens=0)
    assert [chunk.drafts for chunk in scheduler.plan().chunks] == [()]
