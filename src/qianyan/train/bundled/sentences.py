"""What the bundled judge is taught to be asked and to say, in Chinese and English.

The closed questions are those of assets/questions.json, which inspection asks with the same
words. Every other question gets one honest sentence, because a model this small knows nothing
beyond this inspection.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Literal

import numpy as np

Language = Literal["zh", "en"]
LANGUAGES: tuple[Language, ...] = ("zh", "en")

DECLINED: dict[Language, str] = {
    "zh": "我只回答本检查的问题。",
    "en": "I only answer the questions of this inspection.",
}


@dataclass(frozen=True)
class Question:
    """One closed question: its words in both languages and what each letter means."""

    zh: str
    en: str
    options: dict[str, str]

    def words(self, language: Language) -> str:
        """Give the question in one language."""
        return self.zh if language == "zh" else self.en

    def letter(self, meaning: str) -> str:
        """Give the letter that answers with `meaning`."""
        return next(letter for letter, said in self.options.items() if said == meaning)


def load_questions() -> dict[str, Question]:
    """Read the closed questions that training and inspection share, by name."""
    text = files("qianyan").joinpath("assets/questions.json").read_text(encoding="utf-8")
    return {
        name: Question(zh=entry["zh"], en=entry["en"], options=entry["options"])
        for name, entry in json.loads(text).items()
    }


@dataclass(frozen=True, kw_only=True)
class Contents:
    """What the labels say is in a picture; None where nobody looked for it."""

    fire: bool | None
    smoke: bool | None
    helmets: int | None
    bare_heads: int | None


# "people" for several, "a person" for one: (one, several)
_EN = {
    "fire": "an open flame",
    "smoke": "smoke",
    "helmets": ("a person with a hard hat", "people with hard hats"),
    "bare_heads": ("a person without a hard hat", "people without hard hats"),
}
_ZH = {
    "fire": "明火",
    "smoke": "烟雾",
    "helmets": "戴安全帽的人员",
    "bare_heads": "未戴安全帽的人员",
}


def describe(contents: Contents, language: Language) -> str:
    """Say in one sentence what was found, or that nothing was found; never that all is safe."""
    if language == "zh":
        found = [word for name, word in _ZH.items() if getattr(contents, name)]
        return (
            f"图中有{_join(found, '、', '和')}。"
            if found
            else f"图中未发现{_looked_for(contents, language)}。"
        )
    parts = []
    for name, words in _EN.items():
        amount = getattr(contents, name)
        if amount:
            parts.append(words if isinstance(words, str) else words[amount > 1])
    if parts:
        return f"The picture shows {_join(parts, ', ', ' and ')}."
    return f"No {_looked_for(contents, language)} was found in this picture."


def _looked_for(contents: Contents, language: Language) -> str:
    """List what somebody looked for in the picture."""
    sought = [
        (contents.fire, "明火", "flame"),
        (contents.smoke, "烟雾", "smoke"),
        (contents.helmets, "人员", "person"),
    ]
    words = [zh if language == "zh" else en for state, zh, en in sought if state is not None]
    return _join(words, "、", "或") if language == "zh" else _join(words, ", ", " or ")


def _join(words: list[str], comma: str, last: str) -> str:
    """Write a list the way a sentence does."""
    return last.join([comma.join(words[:-1]), words[-1]]) if len(words) > 1 else "".join(words)


# Made-up questions: a start, one or two topics, an end; words are separated by "|".
_EN_STARTS = [
    "What is",
    "Tell me about",
    "How do I fix",
    "Who invented",
    "Write a poem about",
    "Where can I find",
    "Why is there",
    "Explain",
    "Translate",
    "Please help me with",
    "How many people know",
    "Can you draw",
    "Give me a list of",
    "Is it safe to use",
]
_EN_TOPICS = [
    "the weather",
    "a motor",
    "my holiday",
    "Python code",
    "the moon",
    "this building",
    "a good restaurant",
    "machine learning",
    "the news today",
    "my name",
    "a car",
    "the number 17",
    "football",
    "the meaning of life",
    "a contract",
    "music",
    "the colour of the wall",
    "2 + 2",
    "a crane",
    "an email to my boss",
    "gravity",
]
_EN_WHOLE = [
    "Hello",
    "Hi!",
    "Who are you?",
    "Thanks",
    "Good morning",
    "What can you do?",
    "ok",
    "What time is it?",
    "Which model are you?",
    "asdf",
    "Tell me a joke.",
    "help",
]
_ZH_STARTS = [
    "请介绍",
    "什么是",
    "怎么修理",
    "谁发明了",
    "写一首诗，关于",
    "哪里可以找到",
    "为什么有",
    "请解释",
    "帮我翻译",
    "请帮我写",
    "你知道",
    "给我列出",
    "告诉我",
]
_ZH_TOPICS = [
    "天气",
    "电机",
    "我的假期",
    "代码",
    "月亮",
    "这栋楼",
    "好吃的餐厅",
    "机器学习",
    "今天的新闻",
    "我的名字",
    "汽车",
    "数字十七",
    "足球",
    "人生的意义",
    "合同",
    "音乐",
    "墙的颜色",
    "塔吊",
    "一封邮件",
    "万有引力",
    "北京",
]
_ZH_WHOLE = [
    "你好",
    "您好！",
    "你是谁？",
    "谢谢",
    "早上好",
    "你能做什么？",
    "好的",
    "现在几点？",
    "你是什么模型？",
    "讲个笑话。",
    "帮助",
    "一加一等于几？",
]


def other_question(rng: np.random.Generator, language: Language) -> str:
    """Make up a question that has nothing to do with the inspection."""
    starts, topics, whole, gap, ends = (
        (_ZH_STARTS, _ZH_TOPICS, _ZH_WHOLE, "", ("？", "。", ""))
        if language == "zh"
        else (_EN_STARTS, _EN_TOPICS, _EN_WHOLE, " ", ("?", ".", ""))
    )

    def pick(words: Sequence[str]) -> str:
        return words[int(rng.integers(len(words)))]

    if rng.random() < 0.3:
        return pick(whole)
    second = gap + pick(topics) if rng.random() < 0.2 else ""
    return pick(starts) + gap + pick(topics) + second + pick(ends)


# Words of the trade beyond the questions, so that what users type stays short in tokens.
_TRADE = (
    "fire smoke person helmet hard hat bare head flame minor moderate severe uncertain worn "
    "worker construction site hazard inspection report finding picture photo camera safety "
    "extinguisher exit detected clear blocked scaffold ladder crane vest lamp sunset welding",
    "火灾 烟雾 人员 安全帽 佩戴安全帽 未佩戴安全帽 轻微 中等 严重 不确定 明火 工地 工人 "
    "施工 现场 隐患 检查 报告 发现 "
    "图片 照片 摄像头 安全 灭火器 出口 阻塞 脚手架 梯子 塔吊 反光衣 灯光 夕阳 焊接",
)


def corpus() -> list[str]:
    """List the texts the vocabulary is trained on; the questions and answers weigh most."""
    texts: list[str] = []
    for question in load_questions().values():
        texts += [question.zh, question.en] * 20
    for language in LANGUAGES:
        texts += [DECLINED[language]] * 10
        for number in range(24):
            contents = Contents(
                fire=bool(number & 1),
                smoke=bool(number & 2),
                helmets=number // 4 % 3,
                bare_heads=number // 8,
            )
            texts += [describe(contents, language)] * 2
        rng = np.random.default_rng(0)
        texts += [other_question(rng, language) for _ in range(300)]
    texts += ["user\n", "assistant\n", "system\nYou are a helpful assistant."] * 20
    texts += list(_TRADE) * 3
    return texts
