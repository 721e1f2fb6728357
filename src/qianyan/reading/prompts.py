"""What a model is asked when it is to find or read something, and the schema of its answer.

The keys are those of Qwen2.5-VL's grounding data: `bbox_2d`, `point_2d`, `label`, `text_content`.
Schemas bound the answer's form and length. A coordinate may overshoot the picture by a fifth, as
models do, before the schema holds it back: bending every slip to the edge would hide it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from qianyan.reading.places import View

Lang = Literal["zh", "en"]

OVERSHOOT = 1.2
MAX_LABEL_CHARS = 60
MAX_LINE_CHARS = 200
MAX_COUNT = 9_999

NOTHING: Mapping[Lang, str] = {"zh": "没有", "en": "none"}
_IN_PIXELS: dict[Lang, str] = {
    "zh": "图像宽 {width} 像素、高 {height} 像素，坐标以像素为单位。",
    "en": "The picture is {width} pixels wide and {height} high; coordinates are pixels.",
}
_RELATIVE: dict[Lang, str] = {
    "zh": "坐标是相对值，横向和纵向都从 0 到 {largest}。",
    "en": "Coordinates are relative, 0 to {largest} in both directions.",
}
_JSON: dict[str, dict[Lang, str]] = {
    "find": {
        "zh": "找出图中所有的{what}，每个目标单独一项。{coordinates}只输出 JSON 数组，"
        '格式：[{{"bbox_2d":[x1,y1,x2,y2],"label":"…"}}]。一个都没有时输出 []',
        "en": "Find every {what} in the picture, one item each. {coordinates} Output only a JSON "
        'array: [{{"bbox_2d":[x1,y1,x2,y2],"label":"…"}}]. If there is none, output []',
    },
    "point": {
        "zh": "指出图中所有的{what}，每个目标给出落在它上面的一个点。{coordinates}"
        '只输出 JSON 数组，格式：[{{"point_2d":[x,y],"label":"…"}}]。一个都没有时输出 []',
        "en": "Point at every {what} in the picture, with one point that lies on it. {coordinates} "
        'Output only a JSON array: [{{"point_2d":[x,y],"label":"…"}}]. If there is none, output []',
    },
    "count": {
        "zh": "数一数图中有多少{what}：先逐个框出，再写出总数。{coordinates}只输出 JSON，"
        '格式：{{"objects":[{{"bbox_2d":[x1,y1,x2,y2],"label":"…"}}],"count":0}}',
        "en": "Count every {what} in the picture: box each one first, then state the total. "
        '{coordinates} Output only JSON: {{"objects":[{{"bbox_2d":[x1,y1,x2,y2],"label":"…"}}],'
        '"count":0}}',
    },
    "read_words": {
        "zh": "按阅读顺序逐行读出图中的所有文字，原样照录，并给出每一行的位置。{coordinates}"
        '只输出 JSON 数组，格式：[{{"bbox_2d":[x1,y1,x2,y2],"text_content":"…"}}]。'
        "没有文字时输出 []",
        "en": "Read all text in the picture line by line, in reading order and exactly as written, "
        "with the place of each line. {coordinates} Output only a JSON array: "
        '[{{"bbox_2d":[x1,y1,x2,y2],"text_content":"…"}}]. If there is no text, output []',
    },
}
_REFERENCE: dict[str, dict[Lang, str]] = {
    "find": {
        "zh": "框出图中所有的{what}。如果图中没有{what}，只回答：{nothing}",
        "en": "Box every {what} in the picture. If there is no {what}, answer only: {nothing}",
    },
    "read_words": {
        "zh": "读出图中的文字并框出位置。如果图中没有文字，只回答：{nothing}",
        "en": "Read the text in the picture with its position. If there is none, answer only: "
        "{nothing}",
    },
}


def json_prompt(task: str, view: View, *, lang: Lang, what: str = "") -> str:
    """Ask for places in JSON, telling how coordinates are counted."""
    notation = view.notation
    if notation.span is None:
        width, height = view.seen_wh
        coordinates = _IN_PIXELS[lang].format(width=width, height=height)
    else:
        coordinates = _RELATIVE[lang].format(largest=notation.largest)
    return _JSON[task][lang].format(what=what, coordinates=coordinates)


def reference_prompt(task: str, *, lang: Lang, what: str = "") -> str:
    """Ask a model of the first generation, which marks places in running text."""
    return _REFERENCE[task][lang].format(what=what, nothing=NOTHING[lang])


def boxes_schema(
    view: View, *, max_objects: int, labels: Sequence[str] = (), key: str = "label"
) -> dict[str, Any]:
    """Bound a list of boxes with names, which are words from a list where there is one."""
    chars = MAX_LABEL_CHARS if key == "label" else MAX_LINE_CHARS
    name = {"enum": list(labels)} if labels else _text_schema(chars)
    return _list_schema({"bbox_2d": _numbers_schema(view, corners=2), key: name}, max_objects)


def points_schema(view: View, *, max_objects: int, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Bound a list of points with names."""
    name = {"enum": list(labels)} if labels else _text_schema(MAX_LABEL_CHARS)
    return _list_schema({"point_2d": _numbers_schema(view, corners=1), "label": name}, max_objects)


def count_schema(view: View, *, max_objects: int, labels: Sequence[str] = ()) -> dict[str, Any]:
    """Bound boxes followed by their number."""
    boxes = boxes_schema(view, max_objects=max_objects, labels=labels)
    number = {"type": "integer", "minimum": 0, "maximum": MAX_COUNT}
    return object_schema({"objects": boxes, "count": number})


def object_schema(properties: Mapping[str, Any]) -> dict[str, Any]:
    """Bound an object to exactly these keys, in this order."""
    return {
        "type": "object",
        "properties": dict(properties),
        "required": list(properties),
        "additionalProperties": False,
    }


def to_response_format(schema: Mapping[str, Any]) -> dict[str, Any]:
    """Wrap a schema as the OpenAI API does."""
    return {"type": "json_schema", "json_schema": {"name": "answer", "schema": dict(schema)}}


def _list_schema(properties: Mapping[str, Any], max_objects: int) -> dict[str, Any]:
    return {"type": "array", "maxItems": max_objects, "items": object_schema(properties)}


def _text_schema(max_chars: int) -> dict[str, Any]:
    return {"type": "string", "minLength": 1, "maxLength": max_chars}


def _numbers_schema(view: View, *, corners: int) -> dict[str, Any]:
    """Bound x, y, x, y, … by how far a model may overshoot in each direction."""
    far = view.notation.far_corner(view.seen_wh)
    limits = [{"type": "integer", "minimum": 0, "maximum": round(side * OVERSHOOT)} for side in far]
    return {
        "type": "array",
        "prefixItems": limits * corners,
        "items": False,
        "minItems": 2 * corners,
        "maxItems": 2 * corners,
    }
