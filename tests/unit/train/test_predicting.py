"""Answers made while training are those that the engine gives."""

from pathlib import Path

from qianyan.engine.engine import Engine
from qianyan.inputs.processor import Processor
from qianyan.models.registry import load_model
from qianyan.train.examples import ExampleMaker
from qianyan.train.predicting import answer, expected
from qianyan.train.samples import JsonLines


def test_the_answer_is_the_engine_s_and_the_expected_one_the_sample_s(
    checkpoint: Path, conversations: Path
) -> None:
    model, processor = load_model(checkpoint, dtype="float32"), Processor.from_folder(checkpoint)
    maker = ExampleMaker(model, processor, loss="answers", max_tokens=512)
    engine = Engine(checkpoint, dtype="float32")
    source = JsonLines(conversations)
    num_ids = processor.tokenizer.vocab_size
    for index in (0, 1):
        sample = source.read(index)
        example = maker(sample.messages, source=sample.source)
        last = sample.messages[-1]["content"]
        assert processor.tokenizer.decode(expected(example)) == last
        given = engine.chat(
            sample.messages[:-1], max_tokens=12, temperature=0, repetition_penalty=1.0
        )
        assert (
            answer(model, example, end=-1, vocab_size=num_ids, most=12)[: len(given.token_ids)]
            == given.token_ids
        )


def test_what_follows_the_last_answer_changes_nothing(
    checkpoint: Path, conversations: Path
) -> None:
    model, processor = load_model(checkpoint, dtype="float32"), Processor.from_folder(checkpoint)
    maker = ExampleMaker(model, processor, loss="answers", max_tokens=512)
    sample = JsonLines(conversations).read(0)
    more = [*sample.messages, sample.messages[0]]
    given = [
        answer(model, maker(messages, source="a"), end=-1, vocab_size=300, most=6)
        for messages in (sample.messages, more)
    ]
    assert given[0] == given[1]
