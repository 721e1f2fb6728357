"""The words of `qianyan chat`, in Chinese and English."""

from qianyan.cli.options import Lang

WORDS: dict[Lang, dict[str, str]] = {
    "zh": {
        "loading": "正在载入 {model} …",
        "greeting": "{model}。输入问题；/help 列出命令，Ctrl-D 退出。",
        "you": "你",
        "thinking": "思考",
        "waiting": "正在等待回答 …",
        "attached": "已附上{kind} {name}{size}，随下一条消息发送。",
        "seen": "（{width}×{height}，模型看到 {seen_width}×{seen_height}）",
        "detached": "已取下 {n} 个附件。",
        "nothing_attached": "没有附件。",
        "was_reset": "对话已清空。",
        "system_set": "系统提示已设定，从下一条消息起生效。",
        "system_none": "没有系统提示。",
        "saved": "已保存到 {path}。",
        "replace": "{path} 已存在。覆盖吗？[y/N] ",
        "not_saved": "没有保存。",
        "stopped": "已停止。再按一次 Ctrl-C 退出。",
        "unanswered": "已停止，还没有回答；对话保持原样。再按一次 Ctrl-C 退出。",
        "leave": "再按一次 Ctrl-C 或输入 /quit 退出。",
        "shorten": "对话保持原样；/reset 清空对话，/detach 取下附件。",
        "length": "回答到达长度上限，被截断；可用 --max-tokens 调整。",
        "speed": "{n} 个词元 · {rate:.1f} 词元/秒",
        "seconds": "{seconds:.1f} 秒",
        "conversation": "与 {model} 的对话",
        "system": "系统",
        "user": "用户",
        "assistant": "助手",
        "image": "图片",
        "video": "视频",
        "audio": "音频",
        "file": "文件",
        "cut": "（回答未完）",
        "help": """\
/image 路径或网址   附上图片，随下一条消息发送
/video 路径或网址   附上视频
/audio 路径或网址   附上音频（要有能听的模型，如 Qwen2.5-Omni）
/file 路径或网址    附上文档（PDF、Word、Excel、PPT、网页、Markdown、CSV）
                    长文档可只取一部分：/file 报告.pdf pages=1-20
/detach             取下还没有发送的附件
/system 文字        设定系统提示；不带文字则显示；/system "" 取消
/reset              清空对话，系统提示保留
/save 文件          保存对话，按后缀写成 .md 或 .json
/help               列出命令
/quit               退出（或 Ctrl-D）
行尾加反斜杠 \\ 可换行继续输入；以斜杠开头的消息写两个斜杠；Ctrl-C 停止回答。""",
    },
    "en": {
        "loading": "Loading {model} …",
        "greeting": "{model}. Ask something; /help lists the commands, Ctrl-D leaves.",
        "you": "you",
        "thinking": "thinking",
        "waiting": "Waiting for the answer …",
        "attached": "{kind} {name}{size} goes with the next message.",
        "seen": " ({width}x{height}, seen as {seen_width}x{seen_height})",
        "detached": "Detached: {n}.",
        "nothing_attached": "Nothing is attached.",
        "was_reset": "The conversation starts anew.",
        "system_set": "The system prompt is set; it counts from the next message on.",
        "system_none": "There is no system prompt.",
        "saved": "Saved to {path}.",
        "replace": "{path} exists. Replace it? [y/N] ",
        "not_saved": "Not saved.",
        "stopped": "Stopped. Ctrl-C again leaves.",
        "unanswered": "Stopped before the answer; the conversation is as it was. "
        "Ctrl-C again leaves.",
        "leave": "Ctrl-C again or /quit leaves.",
        "shorten": "The conversation is as it was; /reset starts it anew, /detach takes off "
        "what is attached.",
        "length": "The answer was cut at its greatest length; --max-tokens allows more.",
        "speed": "{n} tokens · {rate:.1f} tokens/s",
        "seconds": "{seconds:.1f} s",
        "conversation": "Conversation with {model}",
        "system": "System",
        "user": "User",
        "assistant": "Assistant",
        "image": "Picture",
        "video": "Video",
        "audio": "Audio",
        "file": "File",
        "cut": "(The answer is not complete.)",
        "help": """\
/image PATH or URL  attach a picture to the next message
/video PATH or URL  attach a video
/audio PATH or URL  attach a sound, for a model that hears, such as Qwen2.5-Omni
/file PATH or URL   attach a document (PDF, Word, Excel, PowerPoint, HTML, Markdown, CSV)
                    part of a long one: /file report.pdf pages=1-20
/detach             take off what is attached and not sent yet
/system TEXT        set the system prompt; without TEXT show it; /system "" removes it
/reset              start the conversation anew; the system prompt stays
/save FILE          save the conversation, as .md or .json by the name's ending
/help               list the commands
/quit               leave (or Ctrl-D)
A backslash \\ at the end of a line continues it; a message that begins with a slash is written
with two; Ctrl-C stops an answer.""",
    },
}
