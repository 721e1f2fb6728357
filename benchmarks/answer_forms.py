"""How many tokens and forward passes does an answer of four detections take, in which form?

    python benchmarks/answer_forms.py TOKENIZER      # a folder with tokenizer.json, e.g. Qwen2-VL's

Each form is written out under its schema by the engine's own grammar and request, token by token as
the tokenizer would write it; tokens that the schema leaves no choice about take no pass. `paid` is
the compact JSON that an endpoint without a schema is asked for and paid by: there every token takes
a pass. Prints a table and writes nothing: the figures depend on nothing but vocabulary and schema.
"""

import argparse
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qianyan.engine.grammar import Grammars
from qianyan.engine.options import Sampling
from qianyan.engine.reply import Reply
from qianyan.engine.request import Request, Sampled
from qianyan.inputs.grounding import Notation
from qianyan.inputs.tokenizer import Tokenizer
from qianyan.inspection.prompts import AnswerForm, listing_schema
from qianyan.inspection.words import Lang

LANGS: tuple[Lang, ...] = ("zh", "en")
WORDS = {
    "zh": (("火灾", "严重"), ("烟雾", "中等"), ("人员", "未佩戴安全帽"), ("人员", "佩戴安全帽")),
    "en": (
        ("fire", "severe"),
        ("smoke", "moderate"),
        ("person", "no helmet"),
        ("person", "helmet"),
    ),
}
BOXES = ([112, 64, 388, 512], [10, 20, 90, 204], [520, 333, 1002, 740], [77, 410, 260, 655])


@dataclass(frozen=True)
class Counted:
    """An answer's tokens and the passes that they take."""

    tokens: int
    passes: int


def answer_of(form: AnswerForm, lang: Lang) -> list[Any]:
    """Write four detections in a form."""
    pairs = list(zip(BOXES, WORDS[lang], strict=True))
    if form == "rows":
        return [[*box, label, sub_label] for box, (label, sub_label) in pairs]
    return [
        {"bbox_2d": box, "label": label, "sub_label": sub_label}
        for box, (label, sub_label) in pairs
    ]


def count(
    tokenizer: Tokenizer, grammars: Grammars, schema: dict[str, Any], answer: list[Any]
) -> Counted:
    """Let the engine's request take the answer, drawing a token wherever one is free."""
    stop = tokenizer.token_id("<|im_end|>")
    assert stop is not None  # noqa: S101  (a chat vocabulary)
    text = json.dumps(answer, ensure_ascii=False)
    response_format = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    request = Request(
        0,
        [stop],
        Sampling(max_tokens=1000, stop_token_ids=frozenset({stop})),
        Reply(tokenizer.stream()),
        grammars.begin(response_format),
    )
    request.append_forced()
    while not request.is_finished:
        rest = text[len(tokenizer.decode(request.output_token_ids)) :]
        request.append_sampled(Sampled(token_id=tokenizer.encode(rest)[0] if rest else stop))
    said = tokenizer.decode(request.output_token_ids).removesuffix("<|im_end|>")
    assert said == text, said  # noqa: S101
    return Counted(len(request.output_token_ids), request.num_forwarded_tokens)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tokenizer", type=Path)
    tokenizer = Tokenizer.from_folder(parser.parse_args().tokenizer)
    stop = tokenizer.token_id("<|im_end|>")
    assert stop is not None  # noqa: S101
    grammars = Grammars(tokenizer.to_json(), frozenset({stop}), num_tokens=tokenizer.vocab_size)
    print(f"{'form':10}{'lang':>6}{'most':>6}{'tokens':>8}{'passes':>8}{'a token':>9}{'paid':>6}")
    for lang in LANGS:
        for form in ("objects", "rows"):
            answer = answer_of(form, lang)
            paid = json.dumps(answer, ensure_ascii=False, separators=(",", ":"))
            for most in (10, 4):
                schema = listing_schema(
                    lang=lang, notation=Notation.RESIZED_PIXELS, max_objects=most, answer=form
                )
                counted = count(tokenizer, grammars, schema, answer)
                share = counted.passes / counted.tokens
                print(
                    f"{form:10}{lang:>6}{most:>6}{counted.tokens:>8}{counted.passes:>8}"
                    f"{share:>9.3f}{len(tokenizer.encode(paid)):>6}"
                )


if __name__ == "__main__":
    main()
