/* The page: what is shown of a conversation, and what its buttons do. */

import { Camera } from "./camera.js";
import { Captions } from "./captions.js";
import { Conversation, deviceFault } from "./conversation.js";
import { forget, keep, recall } from "./memory.js";
import { Fault, listModels } from "./server.js";
import { knows, say, switchLanguage, translate } from "./texts.js";

const KEY = "qianyan.key"; // in this tab only
const RETRIED = new Set(["offline", "refused", "full", "no_hearing"]);
const RECONNECTED = new Set(["lost", "over"]);
const at = (id) => document.getElementById(id);

const shown = { notice: null, models: [], nextCamera: null };
let camera = null;

const view = {
  captions: new Captions(at("captions"), at("scroll"), (number) => {
    at("empty").hidden = number > 0;
    at("clear").hidden = number === 0;
  }),
  level(value) {
    document.documentElement.style.setProperty("--level", value.toFixed(3));
  },
  counted({ sentMs, frames, heardMs, firstMs }) {
    const seconds = (value) => say("seconds", { value: (value / 1000).toFixed(1) });
    at("count-sent").textContent = seconds(sentMs);
    at("count-frames").textContent = frames;
    at("count-heard").textContent = seconds(heardMs);
    at("count-first").textContent = firstMs === null ? "–" : seconds(firstMs);
    Object.assign(document.documentElement.dataset, { sentMs, frames, heardMs });
  },
  voices(names, voice) {
    fill(at("voice"), names, voice);
    if (names.length === 0) {
      at("voice").replaceChildren(new Option(say("voice_none")));
    }
  },
  notice(code, detail = "") {
    shown.notice = { code, detail };
    showNotice();
  },
  changed: () => show(),
};
const talk = new Conversation(view, { key: recall("sessionStorage", KEY), mode: "free" });

function fill(select, names, chosen) {
  select.replaceChildren(...names.map((name) => new Option(name, name, false, name === chosen)));
  select.disabled = names.length < 2;
}

/* Show what is so; every change ends here. */
function show() {
  const { state, mode, phase, isMuted } = talk;
  const isOn = phase === "on";
  const hasSound = isOn && talk.microphone;
  const isAnswering = isOn && (state === "speaking" || state === "thinking");
  document.documentElement.dataset.state = state;
  setText(at("state"), say(`state_${state}`));
  setText(at("hint"), say(`hint_${hintOf(state)}`));
  const link = isOn ? "on" : phase === "lost" ? "lost" : "off";
  at("link").dataset.link = link;
  setText(at("link-text"), say(`link_${link}`));
  at("start").hidden = Boolean(hasSound);
  at("start").disabled = phase === "connecting" || shown.models.length === 0 || !window.isSecureContext;
  setText(at("start"), say(phase === "lost" ? "reconnect" : "start"));
  at("hold").hidden = !(hasSound && mode === "push");
  at("mute").hidden = !(hasSound && mode === "free");
  at("mute").setAttribute("aria-pressed", isMuted);
  setText(at("mute").firstElementChild, say(isMuted ? "unmute" : "mute"));
  at("interrupt").hidden = !isAnswering;
  at("end").hidden = !isOn && phase !== "connecting";
  at("model").disabled = isOn || phase === "connecting" || shown.models.length < 2;
  document.querySelector(`[name=mode][value=${mode}]`).checked = true;
  const canType = shown.models.length > 0 && phase !== "connecting";
  at("words").disabled = at("typing").querySelector("button").disabled = !canType;
}

function hintOf(state) {
  if (state === "ready" && !talk.microphone) {
    return "ready_typing";
  }
  return talk.mode === "push" && (state === "hearing" || state === "speaking") ? `${state}_push` : state;
}

/* Words that stay the same are not written again, for they would be read out again. */
function setText(element, text) {
  if (element.textContent !== text) {
    element.textContent = text;
  }
}

function showNotice() {
  const { notice } = shown;
  at("notice").hidden = notice === null;
  if (notice === null) {
    return;
  }
  const name = knows(`fault_${notice.code}`) ? `fault_${notice.code}` : "fault_server";
  const models = notice.code === "no_hearing" ? notice.detail : "";
  at("notice-text").textContent = say(name, { models });
  at("notice-detail").textContent = models ? "" : notice.detail;
  at("notice").dataset.code = notice.code;
  at("notice-action").hidden = notice.code === "insecure";
  at("notice-action").textContent = say(actionOf(notice.code));
}

function actionOf(code) {
  if (code.startsWith("key")) {
    return "enter_key";
  }
  return RECONNECTED.has(code) ? "reconnect" : RETRIED.has(code) ? "retry" : "dismiss";
}

function clearNotice() {
  shown.notice = null;
  showNotice();
}

/* Show a fault as what it is; anything else is a fault of this page. */
function tell(error) {
  if (!(error instanceof Fault)) {
    throw error;
  }
  if (error.code.startsWith("key")) {
    askKey(error.code);
  } else {
    view.notice(error.code, error.detail);
  }
}

/* Ask the server for its models, and choose those that hear. */
async function look() {
  clearNotice();
  try {
    const models = await listModels(talk.key);
    keep("sessionStorage", KEY, talk.key ?? "");
    const hearing = models.filter((model) => model.input_modalities?.includes("audio"));
    if (hearing.length === 0) {
      throw new Fault("no_hearing", models.map((model) => model.id).join(", "));
    }
    shown.models = hearing.map((model) => model.id);
    talk.model = shown.models.includes(talk.model) ? talk.model : shown.models[0];
    fill(at("model"), shown.models, talk.model);
    if (!window.isSecureContext) {
      view.notice("insecure");
    }
  } catch (error) {
    shown.models = [];
    if (error.code === "key_wrong") {
      forget("sessionStorage", KEY);
    }
    tell(error);
  }
  show();
}

async function start() {
  clearNotice();
  try {
    talk.change({ phase: talk.phase === "on" ? "on" : "connecting" });
    await talk.listen();
    if (talk.phase === "off") { // ended while the browser asked
      talk.close();
      return;
    }
    await talk.connect();
  } catch (error) {
    if (talk.phase === "connecting") {
      talk.close();
    }
    tell(error);
  }
  (at("hold").hidden ? at("mute") : at("hold")).focus();
}

async function type(event) {
  event.preventDefault();
  const text = at("words").value.trim();
  if (!text) {
    return;
  }
  try {
    await talk.connect();
    if (talk.phase === "on") {
      talk.type(text, (await camera?.take()) ?? null);
      at("words").value = "";
    }
  } catch (error) {
    tell(error);
  }
}

function act() {
  const { code } = shown.notice;
  clearNotice();
  if (code.startsWith("key")) {
    askKey(code);
  } else if (RECONNECTED.has(code)) {
    start();
  } else if (RETRIED.has(code)) {
    look();
  }
}

function askKey(code) {
  at("key-wrong").hidden = code === "key";
  at("key-wrong").textContent = code === "key" ? "" : say(`fault_${code}`);
  at("key").value = "";
  at("key-dialog").returnValue = "";
  if (!at("key-dialog").open) {
    at("key-dialog").showModal();
  }
}

async function takeKey(event) {
  event.preventDefault();
  talk.key = at("key").value.trim();
  at("key-dialog").close("use");
  await look();
}

async function switchCamera() {
  if (camera !== null) {
    closeCamera();
  } else {
    await openCamera();
  }
}

async function openCamera(deviceId = null) {
  try {
    camera = await Camera.open(at("preview"), deviceId, (image) => talk.see(image));
  } catch (error) {
    tell(deviceFault("camera", error));
    return;
  }
  camera.onEnded = () => {
    closeCamera();
    view.notice("camera_ended");
  };
  showCamera();
  shown.nextCamera = await camera.findNext();
  at("flip").hidden = shown.nextCamera === null;
}

function closeCamera() {
  camera?.close();
  camera = null;
  at("flip").hidden = true;
  showCamera();
}

async function flip() {
  closeCamera();
  await openCamera(shown.nextCamera);
}

function showCamera() {
  at("camera").setAttribute("aria-checked", camera !== null);
  at("preview").hidden = camera === null;
  at("preview").classList.toggle("mirrored", Boolean(camera?.isFacingUser));
  at("camera-hint").dataset.text = camera === null ? "camera_off" : "camera_on";
  at("camera-hint").textContent = say(at("camera-hint").dataset.text);
}

function speakOtherLanguage() {
  switchLanguage();
  showLanguage();
}

function showLanguage() {
  translate();
  at("language").textContent = say("other_language");
  at("language").lang = document.documentElement.lang === "en" ? "zh-CN" : "en";
  if (talk.phase !== "on") {
    at("voice").replaceChildren(new Option(say("voice_later")));
  }
  view.captions.translate();
  view.counted(talk.counts);
  showNotice();
  showCamera();
  show();
}

function hold() {
  talk.startHold();
  camera?.look();
}

/* While the button is held by finger, mouse, space bar or Enter. */
function holdWith(button) {
  button.addEventListener("pointerdown", (event) => {
    button.setPointerCapture(event.pointerId);
    hold();
  });
  for (const name of ["pointerup", "pointercancel", "blur"]) {
    button.addEventListener(name, () => talk.endHold());
  }
  button.addEventListener("contextmenu", (event) => event.preventDefault());
  button.addEventListener("keydown", (event) => {
    if ((event.key === " " || event.key === "Enter") && !event.repeat) {
      event.preventDefault();
      hold();
    }
  });
  button.addEventListener("keyup", (event) => {
    if (event.key === " " || event.key === "Enter") {
      talk.endHold();
    }
  });
}

holdWith(at("hold"));
at("start").addEventListener("click", start);
at("end").addEventListener("click", () => talk.close());
at("mute").addEventListener("click", () => talk.setMuted(!talk.isMuted));
at("interrupt").addEventListener("click", () => talk.interrupt());
at("camera").addEventListener("click", switchCamera);
at("flip").addEventListener("click", flip);
at("clear").addEventListener("click", () => view.captions.clear());
at("typing").addEventListener("submit", type);
at("language").addEventListener("click", speakOtherLanguage);
at("notice-action").addEventListener("click", act);
at("key-form").addEventListener("submit", takeKey);
at("key-cancel").addEventListener("click", () => at("key-dialog").close("cancel"));
at("key-dialog").addEventListener("close", () => {
  if (shown.models.length === 0 && at("key-dialog").returnValue !== "use") {
    view.notice("key");
  }
});
at("model").addEventListener("change", () => { talk.model = at("model").value; });
at("voice").addEventListener("change", () => talk.setVoice(at("voice").value));
for (const choice of document.querySelectorAll("[name=mode]")) {
  choice.addEventListener("change", () => talk.setMode(choice.value));
}
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !at("key-dialog").open) {
    talk.interrupt();
  }
});
window.addEventListener("pagehide", () => talk.close());

showLanguage();
look();
