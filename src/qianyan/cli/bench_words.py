"""What `qianyan bench` says, in Chinese and English: the table, what binds, what would help."""

from dataclasses import dataclass

from rich.cells import cell_len

from qianyan.cli.model_words import size_word
from qianyan.cli.options import Lang
from qianyan.cli.terminal import printable
from qianyan.engine.benchmark import PARTS, Figures, Part, Timing, matrix_rate

WORDS: dict[Lang, dict[str, str]] = {
    "zh": {
        "machine_step": "测量本机 …",
        "load_step": "加载模型 …",
        "first_step": "第一个问题 …",
        "steady_step": "之后的问题 …",
        "batch_step": "成批提问 …",
        "pair_step": "检测器与判别模型 …",
        "machine": "本机：{processor}，{cores} 核，{threads} 线程，torch {torch}，{device}",
        "rates": "读取 {read:.1f} GB/s；矩阵运算 {matrix}",
        "model": "模型：{name}（{architecture}），{dtype}，权重 {weights}，加载 {load:.1f} 秒",
        "peak": "内存峰值 {peak}",
        "work": "问题：{prompt} 词元，图片 {patches} 图块；答案：{answer} 词元，{passes} 次解码",
        "preparation": "图文准备",
        "vision": "视觉",
        "prefill": "预填充",
        "decode": "解码",
        "engine": "引擎",
        "first": "首次",
        "steady": "稳定",
        "total": "合计",
        "seconds": "秒",
        "share": "达到上限的 {share:.0%}",
        "first_token": "首词元 {first:.2f} 秒（首次 {cold:.2f} 秒）；预填充 {prefill:.0f} 词元/秒；"
        "解码 {decode:.1f} 词元/秒",
        "alone": "逐张：每分钟 {rate:.1f} 张",
        "together": "{n} 张一批：每分钟 {rate:.1f} 张（{gain:.2f} 倍）",
        "batches": "成批",
        "growth": "一批张数与每分钟张数：{steps}；{why}。",
        "asked": "还在增长，只试到 {n} 张（见 --pictures）",
        "memory": "缓存放不下更多问题",
        "matrix": "再多不会更快，受矩阵运算速度限制",
        "read": "再多不会更快，受读取带宽限制",
        "program": "再多不会更快，受程序而非机器限制",
        "pair": "检测器与判别模型一起：每分钟 {rate:.1f} 张",
        "written": "已写入：{path}",
        "binds_matrix": "{part}用时最多（{part_share:.0%}），受矩阵运算速度限制{reached}。",
        "binds_read": "{part}用时最多（{part_share:.0%}），受读取权重的带宽限制{reached}。",
        "binds_program": "{part}用时最多（{part_share:.0%}），受程序而非机器限制{reached}。",
        "reached": "，已达到上限的 {share:.0%}",
        "fewer_pixels": "用 --max-pixels 减少图块最有效：图块减半，视觉和预填充大约也减半。",
        "bfloat16": "这台机器的 bfloat16 比 float32 快 {gain:.1f} 倍：试试 --dtype bfloat16。",
        "float32": "这台机器的 float32 比 bfloat16 快 {gain:.1f} 倍：试试 --dtype float32。",
        "smaller_weights": "每一步读取 {size} 权重：位数更少的权重按比例缩短解码。",
        "batch_helps": "成批提问有用：{n} 张一批快到 {gain:.1f} 倍，权重读一次服务多张。",
        "batch_full": "{n} 张一批只快到 {gain:.2f} 倍：机器已满，需要更多核或加速器。",
        "more_cores": "更多核或加速器按比例缩短这一部分。",
        "small_model": "模型小，一步的固定开销占比高；成批提问可以分摊。",
    },
    "en": {
        "machine_step": "measuring the machine …",
        "load_step": "loading the model …",
        "first_step": "first question …",
        "steady_step": "further questions …",
        "batch_step": "questions together …",
        "pair_step": "detector and judge …",
        "machine": "machine: {processor}, {cores} cores, {threads} threads, torch {torch}, "
        "{device}",
        "rates": "reads {read:.1f} GB/s; matrices {matrix}",
        "model": "model: {name} ({architecture}), {dtype}, weights {weights}, loaded in "
        "{load:.1f} s",
        "peak": "peak memory {peak}",
        "work": "question: {prompt} tokens, picture of {patches} patches; answer: {answer} tokens "
        "in {passes} decode passes",
        "preparation": "preparation",
        "vision": "vision",
        "prefill": "prefill",
        "decode": "decode",
        "engine": "engine",
        "first": "first",
        "steady": "steady",
        "total": "total",
        "seconds": "s",
        "share": "{share:.0%} of the limit",
        "first_token": "first token after {first:.2f} s (first question: {cold:.2f} s); prefill "
        "{prefill:.0f} tokens/s; decode {decode:.1f} tokens/s",
        "alone": "one at a time: {rate:.1f} pictures a minute",
        "together": "{n} together: {rate:.1f} pictures a minute ({gain:.2f}x)",
        "batches": "together",
        "growth": "pictures together, and a minute: {steps}; {why}.",
        "asked": "still growing, {n} were the most asked together (see --pictures)",
        "memory": "the cache has no room for more questions",
        "matrix": "more are no faster, the rate of matrix operations binds",
        "read": "more are no faster, the bandwidth for reading binds",
        "program": "more are no faster, the program binds and not the machine",
        "pair": "detector and judge together: {rate:.1f} pictures a minute",
        "written": "written: {path}",
        "binds_matrix": "Most time goes to {part} ({part_share:.0%}), which the rate of matrix "
        "operations binds{reached}.",
        "binds_read": "Most time goes to {part} ({part_share:.0%}), which the bandwidth for "
        "reading weights binds{reached}.",
        "binds_program": "Most time goes to {part} ({part_share:.0%}), which the program binds, "
        "not the machine{reached}.",
        "reached": " ({share:.0%} of the limit is reached)",
        "fewer_pixels": "Fewer patches help most: half of them by --max-pixels about halves vision "
        "and prefill.",
        "bfloat16": "bfloat16 is {gain:.1f}x as fast as float32 here: try --dtype bfloat16.",
        "float32": "float32 is {gain:.1f}x as fast as bfloat16 here: try --dtype float32.",
        "smaller_weights": "Each pass reads {size} of weights: weights of fewer bits shorten "
        "decode in proportion.",
        "batch_helps": "Asking together helps: {n} at once are {gain:.1f}x as fast, because "
        "weights are read once for all.",
        "batch_full": "{n} at once are only {gain:.2f}x as fast: the machine is full and needs "
        "more cores or an accelerator.",
        "more_cores": "More cores or an accelerator shorten this part in proportion.",
        "small_model": "The model is small, so what each pass costs besides arithmetic shows; "
        "asking several questions together spreads it.",
    },
}
CLEARLY = 1.25
"""A gain below this is not worth a sentence."""
LIMIT_REACHED = 0.4
"""Below this share of a limit it is the program that binds."""
LARGE_WEIGHTS = 2**28
"""Smaller ones stay in the processor's cache, or nearly so."""
MOST_ADVICE = 2


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A model's figures; `pair_per_minute` is that of detector and judge, where they are."""

    figures: Figures
    pair_per_minute: float | None = None


def alone_per_minute(timing: Timing) -> float:
    """Give the pictures a minute of questions asked one after another."""
    return 60 / timing.total_s


def batch_gain(figures: Figures) -> float | None:
    """Say how many times as fast questions together are; None where they were not asked."""
    if figures.batch is None:
        return None
    return figures.batch.pictures_per_minute / alone_per_minute(figures.steady)


def slowest_part(timing: Timing) -> Part:
    """Name the part of an answer that takes the most time."""
    return max(PARTS, key=lambda part: timing.parts[part])


def verdict(measured: Measured, lang: Lang) -> str:
    """Say in two or three sentences what binds and what would help."""
    words, figures = WORDS[lang], measured.figures
    part = slowest_part(figures.steady)
    share = getattr(figures.shares, part, None)
    if part in ("preparation", "engine") or (share is not None and share < LIMIT_REACHED):
        key = "binds_program"
    else:
        key = "binds_read" if part == "decode" else "binds_matrix"
    first = words[key].format(
        part=words[part],
        part_share=figures.steady.parts[part] / figures.steady.total_s,
        reached="" if share is None else words["reached"].format(share=min(share, 1)),
    )
    space = " " if lang == "en" else ""
    return space.join([first, *_advice(measured, part, words)[:MOST_ADVICE]])


def _advice(measured: Measured, part: Part, words: dict[str, str]) -> list[str]:
    """List what would help, the best first."""
    figures, limits = measured.figures, measured.figures.limits
    said = []
    if part in ("vision", "prefill"):
        other = "bfloat16" if figures.dtype == "float32" else "float32"
        here, there = matrix_rate(limits, figures.dtype), matrix_rate(limits, other)
        if here and there and there / here > CLEARLY:
            said.append(words[other].format(gain=there / here))
        if figures.steady.grids:
            said.append(words["fewer_pixels"])
    if part == "decode" and figures.read_bytes_per_pass > LARGE_WEIGHTS:
        size = size_word(figures.read_bytes_per_pass)
        said.append(words["smaller_weights"].format(size=size))
    gain = batch_gain(figures)
    if gain is not None and figures.batch is not None:
        key = "batch_helps" if gain > CLEARLY else "batch_full"
        said.append(words[key].format(n=figures.batch.pictures, gain=gain))
    elif part in ("decode", "engine"):
        said.append(words["small_model"])
    else:
        said.append(words["more_cores"])
    return said


def table(measured: Measured, lang: Lang) -> list[str]:
    """Write the figures as lines of text, bars of the steady question among them."""
    words, limits, figures = WORDS[lang], measured.figures.limits, measured.figures
    steady, first = figures.steady, figures.first
    matrix = ", ".join(
        f"{name} {'-' if rate is None else f'{rate / 1e9:.0f}'} G/s"
        for name, rate in limits.matrix_rates.items()
    )
    lines = [
        words["machine"].format(
            processor=printable(limits.processor),
            cores=limits.cores,
            threads=limits.threads,
            torch=limits.torch,
            device=limits.device,
        ),
        words["rates"].format(read=limits.read_bytes_per_s / 1e9, matrix=matrix),
        words["model"].format(
            name=printable(figures.name),
            architecture=figures.architecture,
            dtype=figures.dtype,
            weights=size_word(figures.weights_bytes),
            load=figures.load_s,
        ),
        words["work"].format(
            prompt=steady.prompt_tokens,
            patches=sum(t * h * w for t, h, w in steady.grids),
            answer=steady.completion_tokens,
            passes=steady.decode_passes,
        ),
        "",
        *_bars(figures, words),
        "",
        words["first_token"].format(
            first=steady.first_token_s,
            cold=first.first_token_s,
            prefill=steady.prefill_tokens_per_s,
            decode=steady.decode_tokens_per_s,
        ),
        words["alone"].format(rate=alone_per_minute(steady)),
    ]
    gain = batch_gain(figures)
    if gain is not None and figures.batch is not None:
        rate = figures.batch.pictures_per_minute
        lines.append(words["together"].format(n=figures.batch.pictures, rate=rate, gain=gain))
    if figures.growth_limit is not None:
        lines.append(growth_line(figures, words))
    if measured.pair_per_minute is not None:
        lines.append(words["pair"].format(rate=measured.pair_per_minute))
    if figures.peak_rss_bytes is not None:
        lines.append(words["peak"].format(peak=size_word(figures.peak_rss_bytes)))
    return lines


def growth_line(figures: Figures, words: dict[str, str]) -> str:
    """Say how many pictures a minute each batch brought, and what ended the growth."""
    steps = " → ".join(f"{one.pictures}: {one.pictures_per_minute:.1f}" for one in figures.growth)
    why = words[figures.growth_limit or "asked"].format(n=figures.growth[-1].pictures)
    return words["growth"].format(steps=steps, why=why)


BAR_WIDTH = 30
LABEL_WIDTH = 12


def _bars(figures: Figures, words: dict[str, str]) -> list[str]:
    """Draw a row for each part: first and steady seconds, a bar, the share of the limit."""
    steady, first = figures.steady, figures.first
    longest = max(steady.parts.values())
    lines = []
    for part in PARTS:
        seconds = steady.parts[part]
        bar = "█" * round(BAR_WIDTH * seconds / longest) if longest else ""
        share = getattr(figures.shares, part, None)
        note = "" if share is None else " " + words["share"].format(share=share)
        lines.append(f"{_padded(words[part])}{first.parts[part]:9.3f} {seconds:9.3f} {bar}{note}")
    heads = "".join(_padded(words[key], 10, right=True) for key in ("first", "steady"))
    totals = f"{first.total_s:9.3f} {steady.total_s:9.3f}"
    total = f"{_padded(words['total'])}{totals} {words['seconds']}"
    return [f"{_padded('', LABEL_WIDTH - 1)}{heads}", *lines, total]


def _padded(word: str, width: int = LABEL_WIDTH, *, right: bool = False) -> str:
    """Fill a word up to a width in cells; Chinese characters take two."""
    space = " " * (width - cell_len(word))
    return space + word if right else word + space
