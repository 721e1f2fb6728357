"""What is said about models on disk, in Chinese and English: licences, sizes, headings."""

from typing import TYPE_CHECKING

from qianyan.cli.options import Lang
from qianyan.cli.terminal import printable

if TYPE_CHECKING:
    from qianyan.engine.library import Licence

_WORDS: dict[Lang, dict[str, str]] = {
    "zh": {
        "name": "名称",
        "architecture": "架构",
        "size": "大小",
        "licence": "许可证",
        "incomplete": "不完整",
        "no_licence": "未注明",
        "non_commercial": "非商用",
        "unknown_use": "请查阅",
        "pulled": "已取得 {done}/{total}（{percent}%），{file}",
        "quantized": "已写入 {done}/{total}（{percent}%），{file}",
        "files": "{done}/{total} 个文件",
        "colon": "：",
        "folder": "位置",
        "parameters": "参数",
        "text": "文字",
        "vision": "视觉",
        "audio": "音频",
        "active": "，每个词元用到 {n}",
        "stored": "存储格式",
        "max_length": "最大长度",
        "tokens": "{n} 词元",
        "not_on_disk": "不在本机",
        "dtype": "数值格式",
        "dtype_stored": "原样",
        "weights": "权重",
        "with_context": "含 {n} 词元对话",
        "memory_note": "对话：权重加一次对话的键值缓存；计算中还需要一些，大图片可达数百 MB。",
    },
    "en": {
        "name": "name",
        "architecture": "architecture",
        "size": "size",
        "licence": "licence",
        "incomplete": "incomplete",
        "no_licence": "none stated",
        "non_commercial": "NON-COMMERCIAL",
        "unknown_use": "read it",
        "pulled": "{done} of {total} ({percent}%), {file}",
        "quantized": "written {done} of {total} ({percent}%), {file}",
        "files": "file {done} of {total}",
        "colon": ": ",
        "folder": "folder",
        "parameters": "parameters",
        "text": "text",
        "vision": "vision",
        "audio": "audio",
        "active": ", {n} take part in each token",
        "stored": "stored as",
        "max_length": "longest",
        "tokens": "{n} tokens",
        "not_on_disk": "not on disk",
        "dtype": "format",
        "dtype_stored": "as stored",
        "weights": "weights",
        "with_context": "with {n} tokens",
        "memory_note": "Conversations: weights, and the keys and values of one conversation. "
        "Computing takes some more, up to some hundred MB for a large picture.",
    },
}
_LICENCES: dict[Lang, dict[str, str]] = {
    "zh": {
        "none": "没有注明许可证；使用前请向作者确认。",
        "no": "许可证：{name}。非商用：仅限研究与评估；商业使用须先取得作者许可。",
        "conditions": "许可证：{name}。可以商用，附有条件：月活跃用户超过 1 亿须申请许可。",
        "yes": "许可证：{name}。可以商用。",
        "unknown": "许可证：{name}。能否商用未知；使用前请阅读许可证全文。",
    },
    "en": {
        "none": "No licence is stated; ask the author before you use it.",
        "no": "Licence: {name}. NON-COMMERCIAL: research and evaluation only; commercial use needs "
        "the author's permission.",
        "conditions": "Licence: {name}. Commercial use with conditions: above 100 million monthly "
        "active users a licence must be requested.",
        "yes": "Licence: {name}. Commercial use is allowed.",
        "unknown": "Licence: {name}. Whether commercial use is allowed is not known; read it "
        "before use.",
    },
}
_WITH_CONDITIONS = frozenset({"qwen", "tongyi-qianwen"})


def words(lang: Lang) -> dict[str, str]:
    """Give the words of one language by their keys."""
    return _WORDS[lang]


def licence_sentence(licence: "Licence | None", lang: Lang) -> str:
    """Say what a licence allows."""
    if licence is None:
        return _LICENCES[lang]["none"]
    kind = {True: "yes", False: "no", None: "unknown"}[licence.is_commercial]
    if licence.is_commercial and licence.id in _WITH_CONDITIONS:
        kind = "conditions"
    return _LICENCES[lang][kind].format(name=printable(licence.name))


def architecture_word(architecture: str | None) -> str:
    """Shorten an architecture's class name: Qwen2_5_VLForConditionalGeneration to Qwen2_5_VL."""
    if architecture is None:
        return "?"
    return printable(architecture.split("For", 1)[0].removesuffix("LMHeadModel"))


def count_word(number: int) -> str:
    """Write a number of parameters, 3.1 B."""
    for unit, size in (("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if number >= size:
            return f"{number / size:.2f} {unit}"
    return str(number)


def size_word(num_bytes: int) -> str:
    """Write a size in the largest fitting unit of a thousand, 7.5 GB."""
    size = float(num_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" or size >= 99.5 else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"
