"""Say a measured endpoint profile in a few lines, in Chinese and English."""

from qianyan.inputs.grounding import Notation
from qianyan.inspection.remote.profile import MIN_IOU, EndpointProfile
from qianyan.inspection.remote.vision import pinned_size
from qianyan.inspection.words import Lang

_NOTATIONS: dict[Lang, dict[Notation, str]] = {
    "zh": {
        Notation.RESIZED_PIXELS: "缩放后图像的像素",
        Notation.SENT_PIXELS: "所发送图像的像素",
        Notation.RELATIVE_1000: "相对坐标 0–1000",
        Notation.RELATIVE_BELOW_1000: "相对坐标 0–999",
        Notation.RELATIVE_1: "相对坐标 0–1",
        Notation.RESIZED_PIXELS_YX: "缩放后图像的像素，y 在前",
        Notation.SENT_PIXELS_YX: "所发送图像的像素，y 在前",
        Notation.RELATIVE_1000_YX: "相对坐标 0–1000，y 在前",
        Notation.RELATIVE_1_YX: "相对坐标 0–1，y 在前",
    },
    "en": {
        Notation.RESIZED_PIXELS: "pixels of the resized picture",
        Notation.SENT_PIXELS: "pixels of the picture as sent",
        Notation.RELATIVE_1000: "relative, 0 to 1000",
        Notation.RELATIVE_BELOW_1000: "relative, 0 to 999",
        Notation.RELATIVE_1: "relative, 0 to 1",
        Notation.RESIZED_PIXELS_YX: "pixels of the resized picture, y first",
        Notation.SENT_PIXELS_YX: "pixels of the picture as sent, y first",
        Notation.RELATIVE_1000_YX: "relative, 0 to 1000, y first",
        Notation.RELATIVE_1_YX: "relative, 0 to 1, y first",
    },
}
_SENTENCES: dict[Lang, dict[str, str]] = {
    "zh": {
        "answers": "✔ 端点有应答：{model}（每张图约 {latency:.1f} 秒，{tokens} 个提示 token）",
        "placed": "✔ 坐标：{notation}（倍数 {factor}）  IoU {iou:.2f}（次优 {next:.2f}）",
        "not_placed": "✘ 坐标：无法确定。最接近的读法（{notation}）IoU 只有 {iou:.2f}，低于 {min}，"
        "因此不会据此画框。请换用具备定位能力的视觉模型，或检查服务端是否改动了图像。",
        "unreadable": "! {asked} 个测试回答中有 {unreadable} 个读不出方框",
        "size": "✔ 发送尺寸：16:9 时 {width}×{height}，由我方固定，服务端不会再缩放",
        "refused": "! 服务端拒绝 {mega:.2f} 百万像素的图片，已按更小的尺寸发送",
        "fitting": "✔ 试过的最大图片 {mega:.2f} 百万像素，方框仍然准确",
        "logprobs": "✔ 支持对数概率：检测带置信分",
        "no_logprobs": "– 不支持对数概率：检测没有置信分（score 为 null）",
        "schema": "✔ 支持 JSON schema：回答受格式约束",
        "no_schema": "– 不支持 JSON schema：使用容错解析",
        "unknown": "未知",
    },
    "en": {
        "answers": "✔ endpoint answers: {model} (about {latency:.1f} s and {tokens} prompt tokens "
        "per picture)",
        "placed": "✔ coordinates: {notation} (factor {factor})  "
        "IoU {iou:.2f} (next best {next:.2f})",
        "not_placed": "✘ coordinates: not found. The closest reading ({notation}) has an IoU of "
        "only {iou:.2f}, below {min}, so no boxes will be drawn from it. Use a vision model that "
        "can ground, or look for something between here and the model that changes pictures.",
        "unreadable": "! {unreadable} of {asked} test answers had no readable boxes",
        "size": "✔ pictures are sent as {width}×{height} (for 16:9), which the server leaves alone",
        "refused": "! the server refuses pictures of {mega:.2f} megapixels; smaller ones are sent",
        "fitting": "✔ boxes still fit on the largest picture tried, {mega:.2f} megapixels",
        "logprobs": "✔ log-probabilities: yes, so detections have scores",
        "no_logprobs": "– log-probabilities: no, so detections have no scores (null)",
        "schema": "✔ JSON schema: yes, answers are held to it",
        "no_schema": "– JSON schema: no, the tolerant reader is used",
        "unknown": "unknown",
    },
}


def profile_lines(profile: EndpointProfile, lang: Lang) -> list[str]:
    """Say what the probe found, one finding a line; ✔ good, – missing, ! mind this, ✘ unusable."""
    say = _SENTENCES[lang]
    width, height = pinned_size(profile, (1920, 1080))
    values = {
        "model": profile.model,
        "latency": profile.latency_s or 0.0,
        "tokens": profile.tokens_per_picture or say["unknown"],
        "notation": _NOTATIONS[lang][profile.notation],
        "factor": profile.factor,
        "iou": profile.iou or 0.0,
        "next": profile.next_iou or 0.0,
        "min": MIN_IOU,
        "asked": profile.num_asked,
        "unreadable": profile.num_unreadable,
        "width": width,
        "height": height,
    }
    keys = ["answers", "placed" if profile.can_place_boxes else "not_placed"]
    if profile.num_unreadable:
        keys.append("unreadable")
    if profile.can_place_boxes:
        keys.append("size")
    lines = [say[key].format(**values) for key in keys]
    for key, pixels in (
        ("fitting", profile.largest_fitting_pixels),
        ("refused", profile.refused_pixels),
    ):
        if pixels is not None:
            lines.append(say[key].format(mega=pixels / 1e6))
    lines.append(say["logprobs" if profile.has_logprobs else "no_logprobs"])
    lines.append(say["schema" if profile.has_schema else "no_schema"])
    return lines
