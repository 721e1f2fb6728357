/* Every word of the page, in Chinese and in English. */

import { keep, recall } from "./memory.js";

const TEXTS = {
  zh: {
    title: "语音",
    console: "语音控制台",
    other_language: "English",
    start: "开始对话",
    hold: "按住说话",
    interrupt: "打断",
    mute: "静音",
    unmute: "取消静音",
    end: "结束",
    clear: "清空",
    camera: "摄像头",
    camera_off: "关闭：模型只听声音。",
    camera_on: "开启：对话时约每秒发送一张画面。",
    preview: "摄像头预览",
    flip: "切换摄像头",
    settings: "设置",
    mode: "说话方式",
    mode_free: "自由对话",
    mode_push: "按住说话",
    model: "模型",
    voice: "音色",
    voice_later: "开始对话后可选",
    voice_none: "此模型不说话，只用文字回答",
    talk: "对话",
    empty_title: "还没有对话",
    empty_text: "点“开始对话”直接说话，或在下方输入文字。开启摄像头后，可以问模型看到了什么。",
    type: "或在此输入文字",
    send: "发送",
    count_sent: "已发送声音",
    count_frames: "已发送画面",
    count_heard: "已播放回答",
    count_first: "首个声音用时",
    privacy: "声音和画面只发送到本服务器，只在对话期间保存在内存中；断开后即删除，不写入磁盘，也不写入日志。回答由模型生成，请自行核对。",
    key_title: "需要 API 密钥",
    key_text: "此服务器需要密钥。密钥只保存在本标签页中，关闭后即忘记。",
    key_label: "服务器密钥",
    key_use: "使用此密钥",
    cancel: "取消",
    you: "你",
    answer: "千眼",
    spoken: "语音 {seconds} 秒",
    spoken_frames: "语音 {seconds} 秒 · 画面 {frames} 张",
    cut: "已打断",
    incomplete: "回答过长，未说完",
    failed: "回答失败",
    seconds: "{value} 秒",
    state_off: "未开始",
    state_connecting: "正在连接…",
    state_ready: "已连接",
    state_listening: "正在听",
    state_hearing: "听到你在说",
    state_thinking: "正在思考",
    state_speaking: "正在回答",
    state_muted: "已静音",
    state_lost: "连接已断开",
    hint_off: "建议使用耳机，回答不会传回麦克风。",
    hint_connecting: "浏览器可能会询问是否允许使用麦克风。",
    hint_ready: "按住按钮（或空格键）说话，或输入文字。",
    hint_ready_typing: "麦克风未开启，请输入文字。",
    hint_listening: "请说话，停顿后模型会回答。",
    hint_hearing: "说完停顿一下即可。",
    hint_hearing_push: "松开后发送。",
    hint_thinking: "模型正在准备回答。",
    hint_speaking: "直接说话，或按“打断”。",
    hint_speaking_push: "再次按住，或按“打断”。",
    hint_muted: "模型听不到你。",
    hint_lost: "对话内容还在屏幕上，但模型已不记得。",
    link_off: "未连接",
    link_on: "已连接",
    link_lost: "已断开",
    reconnect: "重新连接",
    retry: "重试",
    enter_key: "输入密钥",
    dismiss: "知道了",
    fault_key: "此服务器需要 API 密钥。",
    fault_key_wrong: "密钥不正确，请检查后重试。",
    fault_key_unsendable: "此密钥含有浏览器无法在连接中发送的字符，请换用字母和数字组成的密钥。",
    fault_offline: "连接不上服务器。请确认 qianyan serve 正在运行，再重试。",
    fault_refused: "服务器拒绝了请求。",
    fault_no_hearing: "此服务器上的模型（{models}）不能听也不能说。请用 Qwen2.5-Omni 启动：qianyan serve --model Qwen/Qwen2.5-Omni-3B",
    fault_no_voice: "此模型能听，但不会说话：回答以文字显示。",
    fault_insecure: "浏览器只允许安全页面使用麦克风和摄像头：请通过 https 打开本页，或在服务器本机用 http://localhost 打开。现在可以先输入文字。",
    fault_microphone_refused: "麦克风被拒绝。请在浏览器地址栏的站点设置中允许，再重试；也可以输入文字。",
    fault_microphone_missing: "没有找到麦克风。请接好后重试；也可以输入文字。",
    fault_microphone_busy: "麦克风打不开，可能正被其他程序占用。",
    fault_microphone_ended: "麦克风已断开。",
    fault_camera_refused: "摄像头被拒绝。请在浏览器地址栏的站点设置中允许，再重试。",
    fault_camera_missing: "没有找到摄像头。",
    fault_camera_busy: "摄像头打不开，可能正被其他程序占用。",
    fault_camera_ended: "摄像头已断开。",
    fault_no_sound: "浏览器无法播放或录制声音。请换用较新的 Chrome、Edge、Firefox 或 Safari。",
    fault_no_turns: "此服务器不能自动判断说话的起止，已改为按住说话。",
    fault_full: "服务器上的语音对话已满，请稍后再试。",
    fault_over: "本次对话已到时间或长时间无人说话，服务器已结束它。",
    fault_lost: "与服务器的连接断开了。",
    fault_server: "服务器报告了一个错误。",
    fault_short: "按住的时间太短，请按住按钮直到说完。",
    fault_slow: "网络太慢，声音来不及发送，部分内容已丢弃。",
  },
  en: {
    title: "Voice",
    console: "Voice console",
    other_language: "中文",
    start: "Start talking",
    hold: "Hold to talk",
    interrupt: "Interrupt",
    mute: "Mute",
    unmute: "Unmute",
    end: "End",
    clear: "Clear",
    camera: "Camera",
    camera_off: "Off: the model only listens.",
    camera_on: "On: about one picture a second is sent while you talk.",
    preview: "Camera preview",
    flip: "Other camera",
    settings: "Settings",
    mode: "How you talk",
    mode_free: "Hands-free",
    mode_push: "Push to talk",
    model: "Model",
    voice: "Voice",
    voice_later: "Known once you start",
    voice_none: "This model answers in writing only",
    talk: "Conversation",
    empty_title: "Nothing said yet",
    empty_text: "Press “Start talking” and speak, or type below. With the camera on you can ask about what it sees.",
    type: "Or type here",
    send: "Send",
    count_sent: "Sound sent",
    count_frames: "Pictures sent",
    count_heard: "Speech played",
    count_first: "First sound after",
    privacy: "Sound and pictures go to this server only and are held in memory while you talk; they are dropped when you leave, and written to no disk and no log. Answers are a model's: check them.",
    key_title: "API key needed",
    key_text: "This server needs a key. It is kept in this tab only and forgotten when you close it.",
    key_label: "Key of this server",
    key_use: "Use this key",
    cancel: "Cancel",
    you: "You",
    answer: "Qianyan",
    spoken: "Spoken, {seconds} s",
    spoken_frames: "Spoken, {seconds} s · pictures: {frames}",
    cut: "interrupted",
    incomplete: "too long, not finished",
    failed: "failed",
    seconds: "{value} s",
    state_off: "Not started",
    state_connecting: "Connecting…",
    state_ready: "Connected",
    state_listening: "Listening",
    state_hearing: "Hearing you",
    state_thinking: "Thinking",
    state_speaking: "Speaking",
    state_muted: "Muted",
    state_lost: "Disconnected",
    hint_off: "Headphones keep answers out of the microphone.",
    hint_connecting: "The browser may ask for the microphone.",
    hint_ready: "Hold the button (or the space bar on it) to talk, or type.",
    hint_ready_typing: "The microphone is off: type instead.",
    hint_listening: "Speak; the model answers when you pause.",
    hint_hearing: "Pause when you are done.",
    hint_hearing_push: "Let go to send.",
    hint_thinking: "The model prepares its answer.",
    hint_speaking: "Speak, or press Interrupt.",
    hint_speaking_push: "Hold again, or press Interrupt.",
    hint_muted: "The model does not hear you.",
    hint_lost: "What was said stays on the page; the model has forgotten it.",
    link_off: "Not connected",
    link_on: "Connected",
    link_lost: "Disconnected",
    reconnect: "Reconnect",
    retry: "Try again",
    enter_key: "Enter a key",
    dismiss: "OK",
    fault_key: "This server needs an API key.",
    fault_key_wrong: "That key is not one of this server's. Check it and try again.",
    fault_key_unsendable: "This key has characters that browsers cannot send to a socket; use one of letters and digits.",
    fault_offline: "The server cannot be reached. Make sure that qianyan serve is running, then try again.",
    fault_refused: "The server refused the request.",
    fault_no_hearing: "The model here ({models}) neither hears nor speaks. Start the server with Qwen2.5-Omni: qianyan serve --model Qwen/Qwen2.5-Omni-3B",
    fault_no_voice: "This model hears but does not speak: its answers come in writing.",
    fault_insecure: "Browsers give the microphone and camera to secure pages only: open this page by https, or at http://localhost on the server itself. You can type meanwhile.",
    fault_microphone_refused: "The microphone was refused. Allow it in the site settings beside the address, then try again; or type.",
    fault_microphone_missing: "No microphone was found. Plug one in and try again; or type.",
    fault_microphone_busy: "The microphone cannot be opened; another program may be using it.",
    fault_microphone_ended: "The microphone went away.",
    fault_camera_refused: "The camera was refused. Allow it in the site settings beside the address, then try again.",
    fault_camera_missing: "No camera was found.",
    fault_camera_busy: "The camera cannot be opened; another program may be using it.",
    fault_camera_ended: "The camera went away.",
    fault_no_sound: "This browser cannot play or record sound here. Use a recent Chrome, Edge, Firefox or Safari.",
    fault_no_turns: "This server cannot tell by itself when you speak, so you hold a button to talk.",
    fault_full: "All voice conversations of this server are taken. Try again in a while.",
    fault_over: "The server ended this conversation: its time was over, or nobody had spoken for long.",
    fault_lost: "The connection to the server was lost.",
    fault_server: "The server reported an error.",
    fault_short: "That was too short: hold the button until you are done.",
    fault_slow: "The network is too slow for the sound; some of it was left out.",
  },
};
const LANGUAGES = { zh: "zh-CN", en: "en" };
const REMEMBERED = "qianyan.language";

let language = choose();

function choose() {
  const known = recall("localStorage", REMEMBERED);
  if (known in TEXTS) {
    return known;
  }
  const wanted = navigator.languages.map((tag) => tag.slice(0, 2).toLowerCase());
  return wanted.find((tag) => tag in TEXTS) ?? "en";
}

/* Say a text in the language of the page, with what stands in braces filled in. */
export function say(name, values = {}) {
  return TEXTS[language][name].replace(/\{(\w+)\}/g, (_, key) => values[key]);
}

export function knows(name) {
  return name in TEXTS.en;
}

/* Go over to the other language, and remember it. */
export function switchLanguage() {
  language = language === "zh" ? "en" : "zh";
  keep("localStorage", REMEMBERED, language);
}

export function sayTime(date) {
  return date.toLocaleTimeString(LANGUAGES[language], { hour12: false });
}

/* Put all fixed texts of the page into its language. */
export function translate() {
  document.documentElement.lang = LANGUAGES[language];
  document.title = `千眼 Qianyan · ${say("title")}`;
  for (const element of document.querySelectorAll("[data-text]")) {
    element.textContent = say(element.dataset.text);
  }
  for (const element of document.querySelectorAll("[data-label]")) {
    element.setAttribute("aria-label", say(element.dataset.label));
  }
  for (const element of document.querySelectorAll("[data-hint]")) {
    element.placeholder = say(element.dataset.hint);
  }
}
