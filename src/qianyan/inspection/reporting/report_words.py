"""The words of reports, in Chinese and English: headings, sentences with gaps, lists of words."""

from collections.abc import Mapping
from typing import Any

from qianyan.inspection.records import Hazard
from qianyan.inspection.words import LABELS, SUB_LABEL_WORDS, Lang

REPORT_WORDS: dict[Lang, dict[str, str]] = {
    "zh": {
        "title": "安全检查报告",
        "number": "编号",
        "facts": "基本信息",
        "time": "检查时间",
        "pictures": "图片数量",
        "model": "检查模型",
        "unit": "项目／单位",
        "place": "检查地点",
        "inspector": "检查人",
        "companion": "陪同人",
        "basis": "检查依据",
        "statistics": "检查统计",
        "tile_all": "图片总数",
        "tile_hazard": "有隐患",
        "tile_review": "待复核",
        "tile_none": "未发现",
        "tile_failed": "未能检查",
        "kind": "类别",
        "by_kind": "分类数量",
        "total": "合计",
        "in_pictures": "涉及图片",
        "looked_in": "检查图片",
        "not_checked": "未检查",
        "hazards": "隐患与待复核清单",
        "no": "序号",
        "picture": "图片",
        "hazard": "隐患",
        "where": "位置",
        "score": "评分",
        "page": "页码",
        "sections": "逐图记录",
        "original": "原图",
        "marked": "标注图",
        "no_picture": "图片文件缺失，无法显示",
        "label": "类别",
        "sub_label": "状态",
        "box": "位置（像素 x1, y1, x2, y2）",
        "vetoed": "复核否决（未计入结论）",
        "reason": "原因",
        "notes": "说明",
        "checked": "检查了",
        "quiet": "未发现隐患的图片",
        "nothing": "未发现隐患",
        "failed": "未能检查的图片",
        "failed_note": "以下图片没有检查结论，不能视为未发现隐患，请重新提供或人工检查。",
        "method": "检查范围与方法",
        "run": "运行编号",
        "program": "程序",
        "vetoes": "复核否决",
        "vetoes_text": "检测器提出、模型复看后否决的目标不计入结论，连同原因列在各图片之下。",
        "glyphs": "缺字说明",
        "glyphs_text": "所用字体没有的字符以方括号中的编号表示：",
        "semicolon": "；",
        "limits": "未覆盖范围",
        "limits_text": "只检查图片中看得见的部分。"
        "画面之外、被遮挡、过暗、过远或过小的目标不在检查范围内。"
        "安全帽只判断是否可见地戴在头上，不判断是否符合 GB 2811-2019，"
        "下颏带是否系紧也不作结论。",
        "scores": "评分含义",
        "scores_text": "评分由模型给出，用于排列复核的先后，不是隐患存在的概率。"
        "来源：对数概率（模型答案的对数概率）、一致性（多次询问的一致程度）、检测器（检测器的得分）；"
        "模型不给出评分时写“无”。",
        "sign": "结论确认与签字",
        "grade": "隐患等级（由检查人员判定）",
        "grade_general": "一般事故隐患",
        "grade_major": "重大事故隐患",
        "grade_none": "不构成隐患",
        "opinion": "处理意见",
        "sign_inspector": "检查人",
        "sign_unit": "被检查单位负责人",
        "sign_review": "审核",
        "date": "日期",
        "disclaimer_title": "声明",
        "disclaimer": "本报告由视觉模型分析图片生成，仅作安全检查的辅助。"
        "它不能代替按 GB 50116（国际上如 NFPA 72）设计的火灾自动报警系统，"
        "也不能代替法定的安全检查。模型会漏报，也会误报；"
        "报告中的每一项结论须由人员在现场核实，并由签字人负责。",
        "page_before": "第 ",
        "page_between": " 页，共 ",
        "page_after": " 页",
        "separator": "、",
        "colon": "：",
        "none": "无",
    },
    "en": {
        "title": "Safety Inspection Report",
        "number": "No.",
        "facts": "Particulars",
        "time": "Inspected",
        "pictures": "Pictures",
        "model": "Model",
        "unit": "Project / company",
        "place": "Place",
        "inspector": "Inspector",
        "companion": "Accompanied by",
        "basis": "Standards applied",
        "statistics": "Statistics",
        "tile_all": "pictures",
        "tile_hazard": "with hazards",
        "tile_review": "to be reviewed",
        "tile_none": "nothing found",
        "tile_failed": "not inspected",
        "kind": "Looked for",
        "by_kind": "Found",
        "total": "Total",
        "in_pictures": "In pictures",
        "looked_in": "Looked in",
        "not_checked": "not looked for",
        "hazards": "Hazards and findings to be reviewed",
        "no": "No.",
        "picture": "Picture",
        "hazard": "Hazard",
        "where": "Where",
        "score": "Score",
        "page": "Page",
        "sections": "Picture by picture",
        "original": "Original",
        "marked": "Marked",
        "no_picture": "The picture file is missing and cannot be shown",
        "label": "Label",
        "sub_label": "State",
        "box": "Box (pixels x1, y1, x2, y2)",
        "vetoed": "Rejected by the second look (not counted)",
        "reason": "Reason",
        "notes": "Notes",
        "checked": "Looked for",
        "quiet": "Pictures in which no hazard was found",
        "nothing": "No hazard found",
        "failed": "Pictures that could not be inspected",
        "failed_note": "These pictures have no verdict and must not be read as showing no hazard. "
        "Provide them again or inspect them by eye.",
        "method": "Scope and method",
        "run": "Run",
        "program": "Program",
        "vetoes": "Second look",
        "vetoes_text": "What was proposed but rejected when looked at again is not counted; it is "
        "listed with the reason under its picture.",
        "glyphs": "Characters",
        "glyphs_text": "Characters that the fonts lack are shown as codes in brackets: ",
        "semicolon": "; ",
        "limits": "Not covered",
        "limits_text": "Only what can be seen in the pictures was inspected. What lies outside the "
        "frame, is hidden, too dark, too far or too small is not covered. For hard hats, only "
        "visible wearing is judged: not whether the hat conforms to a standard, nor whether the "
        "chin strap is fastened.",
        "scores": "Scores",
        "scores_text": "Scores come from the model and rank what to review first; they are not the "
        "probability that a hazard exists. Sources: log-probability (of the model's answer), "
        'agreement (of repeated questions), detector (the detector\'s own score); "none" where the '
        "model gives no score.",
        "sign": "Confirmation and signatures",
        "grade": "Hazard grade (decided by the inspector)",
        "grade_general": "general",
        "grade_major": "major",
        "grade_none": "not a hazard",
        "opinion": "Action to be taken",
        "sign_inspector": "Inspector",
        "sign_unit": "For the inspected company",
        "sign_review": "Reviewed by",
        "date": "Date",
        "disclaimer_title": "Notice",
        "disclaimer": "A vision model produced this report from pictures, as an aid to inspection. "
        "It does not replace a fire detection and alarm system designed to GB 50116, NFPA 72 or "
        "the standard in force, nor the inspection required by law. The model misses hazards and "
        "reports some that do not exist: every statement has to be verified on site, and the "
        "persons signing are responsible for the result.",
        "page_before": "Page ",
        "page_between": " of ",
        "page_after": "",
        "separator": ", ",
        "colon": ": ",
        "none": "none",
    },
}

CHECK_WORDS: dict[Lang, dict[Hazard, str]] = {
    "zh": {Hazard.FIRE: "火灾", Hazard.SMOKE: "烟雾", Hazard.PERSON: "人员安全帽"},
    "en": {Hazard.FIRE: "fire", Hazard.SMOKE: "smoke", Hazard.PERSON: "hard hats"},
}
SCORE_WORDS: dict[Lang, dict[str, str]] = {
    "zh": {"logprob": "对数概率", "agreement": "一致性", "detector": "检测器"},
    "en": {"logprob": "log-probability", "agreement": "agreement", "detector": "detector"},
}
# The nine parts of a picture, row by row, and what is too large for one of them.
PLACE_WORDS: dict[Lang, tuple[str, ...]] = {
    "zh": (
        "左上方",
        "上方",
        "右上方",
        "左侧",
        "中央",
        "右侧",
        "左下方",
        "下方",
        "右下方",
        "大部分画面",
    ),
    "en": (
        "in the upper left",
        "at the top",
        "in the upper right",
        "on the left",
        "in the centre",
        "on the right",
        "in the lower left",
        "at the bottom",
        "in the lower right",
        "across most of it",
    ),
}
# Chinese for the codes of failures; the English sentence of the failure itself follows it.
FAILURE_WORDS: dict[str, str] = {
    "empty_file": "文件为空",
    "not_a_picture": "不是图片",
    "unsupported_format": "不支持的图片格式",
    "truncated": "图片不完整或已损坏",
    "too_small": "图片过小",
    "too_large": "图片过大",
    "too_narrow": "图片过于狭长",
    "not_found": "找不到文件",
    "unreadable_reply": "模型的回答无法解读",
    "endpoint_failed": "模型服务不可用",
}
NOTE_WORDS: dict[str, str] = {
    "animated: first frame only": "动态图片：只检查了第一帧",
    "several pages: first page only": "多页图片：只检查了第一页",
}

# Sentences with gaps, by name; `verdict.py` fills them.
SENTENCES: dict[Lang, dict[str, str]] = {
    "zh": {
        "hazards": "发现 {n} 处隐患：{what}。",
        "reviews": "发现 {n} 处疑似隐患，待人工复核：{what}。",
        "more_reviews": "另有 {n} 处不确定，待人工复核：{what}。",
        "nothing": "本次未发现隐患（{scope}）。",
        "nothing_in_some": "已检查的图片中未发现隐患（{scope}）；{n} 张未能检查。",
        "scope": "检查了：{what}；共 {n} 张图片",
        "scope_part": "{what}（{n} 张）",
        "scope_empty": "没有检查任何项目；共 {n} 张图片",
        "scope_detail": "{scope}。",
        "helmets": "另有 {n} 人佩戴安全帽。",
        "vetoed": "复核时否决了 {n} 处（见各图片，未计入结论）。",
        "no_pictures": "没有得出结论：没有图片。",
        "all_failed": "没有得出结论：图片全部未能检查（共 {n} 张）。",
        "some_failed": "{total} 张图片中有 {n} 张未能检查，以上结论不包括这些图片。",
        "group": "{what} {n} 处（{which}）",
        "group_no_helmet": "未佩戴安全帽 {n} 人",
        "group_head_unsure": "安全帽佩戴情况不确定 {n} 人",
        "group_part": "{which} {n}",
        "finding": "{what}，位于{where}，{share}；{score}。",
        "share": "约占画面 {percent}%",
        "share_small": "占画面不到 1%",
        "score": "评分 {percent}%（{kind}）",
        "score_none": "模型未给出评分",
        "at": "视频 {seconds} 秒处",
        "size": "{width} × {height} 像素",
        "methods": "{n} 张图片",
    },
    "en": {
        "hazards": "{n} hazard{s} found: {what}.",
        "reviews": "{n} possible hazard{s} to be reviewed by a person: {what}.",
        "more_reviews": "{n} more to be reviewed by a person: {what}.",
        "nothing": "No hazard was found ({scope}).",
        "nothing_in_some": "No hazard was found in the pictures that could be inspected "
        "({scope}); {n} could not be inspected.",
        "scope": "looked for: {what}; {n} picture{s}",
        "scope_part": "{what} (in {n})",
        "scope_empty": "nothing was looked for; {n} picture{s}",
        "scope_detail": "{scope}.",
        "helmets": "Seen with a hard hat: {n}.",
        "vetoed": "The second look rejected {n} (see the pictures; not counted).",
        "no_pictures": "No verdict: there were no pictures.",
        "all_failed": "No verdict: no picture could be inspected ({n} given).",
        "some_failed": "{n} of {total} pictures could not be inspected; this verdict does not "
        "cover them.",
        "group": "{what} {n} ({which})",
        "group_no_helmet": "no hard hat {n}",
        "group_head_unsure": "hard hat unclear {n}",
        "group_part": "{n} {which}",
        "finding": "{what}, {where}, {share}; {score}.",
        "share": "about {percent}% of the picture",
        "share_small": "less than 1% of the picture",
        "score": "score {percent}% ({kind})",
        "score_none": "the model gave no score",
        "at": "at {seconds} s of the video",
        "size": "{width} × {height} pixels",
        "methods": "{n} picture{s}",
    },
}


def bold_characters() -> str:
    """List every character of our own words, for the subset of the bold font."""
    tables: list[Mapping[Any, str]] = [
        *REPORT_WORDS.values(),
        *SENTENCES.values(),
        *CHECK_WORDS.values(),
        *LABELS.values(),
    ]
    tables += [*SUB_LABEL_WORDS.values(), *SCORE_WORDS.values(), FAILURE_WORDS, NOTE_WORDS]
    words = [word for table in tables for word in table.values()]
    return "".join(
        sorted(set("".join(words + [word for row in PLACE_WORDS.values() for word in row])))
    )
