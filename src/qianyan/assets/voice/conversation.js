/* A conversation: microphone and camera in, speech and captions out, over one socket.

   Tells its `view` what changes: state(), notice(code, detail), voices(names, voice), level(value),
   counts(values), and the captions. Events are those of OpenAI's realtime API. */

import { MICROPHONE_HZ, Microphone } from "./microphone.js";
import { Player } from "./player.js";
import { fromBase64, toBase64 } from "./pcm.js";
import { Fault, Socket } from "./server.js";
import { Turn } from "./turn.js";

const LEAST_HOLD_MS = 300;
const NOTHING = { sentMs: 0, frames: 0, heardMs: 0, firstMs: null };
const UNIMPORTANT = "unimportant"; // id of events whose errors are nothing to the user
const CLOSING = { limit_sessions: "full", session_expired: "over" }; // codes of the server's errors

export class Conversation {
  constructor(view, { model, key, mode, voice }) {
    Object.assign(this, { view, model, key, mode, voice });
    this.turn = new Turn();
    this.phase = "off"; // of the connection: off, connecting, on, lost
    this.isMuted = false;
    this.isHeard = false; // the server hears somebody speak
    this.hold = "no"; // or "held", or "ending" until the last piece is sent
    this.counts = { ...NOTHING };
    this.fault = null;
    this.framesBefore = 0;
  }

  /* What to show: the first of these that is so. */
  get state() {
    if (this.phase !== "on") {
      return this.phase;
    }
    if (this.hold === "held" || (this.isHeard && !this.isMuted)) {
      return "hearing";
    }
    if (this.player.isBusy || (this.turn.isSpoken && this.turn.isAwaited)) {
      return "speaking";
    }
    if (this.turn.isAwaited) {
      return "thinking";
    }
    if (!this.microphone || this.mode === "push") {
      return "ready";
    }
    return this.isMuted ? "muted" : "listening";
  }

  /* Connect; a second time does nothing. Raises a Fault. */
  async connect() {
    if (this.phase === "on") {
      return;
    }
    const attempt = (this.attempt = {}); // until it is ended, or another one is made
    this.fault = null;
    this.counts = { ...NOTHING };
    this.change({ phase: "connecting" });
    try {
      this.player ??= await openPlayer(this);
      const greeted = new Promise((resolve) => { this.onGreeted = resolve; });
      const socket = await Socket.open({
        model: this.model,
        key: this.key,
        onEvent: (event) => this.take(event),
        onLost: () => this.lose(),
      });
      if (attempt !== this.attempt) {
        socket.close();
        return;
      }
      this.socket = socket;
      await greeted;
      if (this.fault) {
        throw this.fault;
      }
    } catch (error) {
      if (attempt === this.attempt) {
        this.close();
        throw error;
      }
    }
    if (attempt === this.attempt) {
      this.welcome();
    }
  }

  /* The session is there: say how it is to be, and go on. */
  welcome() {
    const { voices = [], audio } = this.session;
    this.canListen = Boolean(audio?.input?.turn_detection); // tells by itself when one speaks
    if (this.mode === "free" && !this.canListen) {
      this.mode = "push";
      this.view.notice("no_turns");
    }
    if (!voices.includes(this.voice)) {
      this.voice = audio?.output?.voice;
    }
    if (voices.length === 0) {
      this.view.notice("no_voice");
    }
    this.view.voices(voices, this.voice);
    this.update();
    this.change({ phase: "on" });
  }

  /* Tell the server how to listen and speak. */
  update() {
    const format = { type: "audio/pcm", rate: MICROPHONE_HZ };
    const turn_detection = this.mode === "free" ? { type: "server_vad" } : null;
    const output = this.voice ? { output: { voice: this.voice } } : {};
    const audio = { input: { format, turn_detection }, ...output };
    this.socket.send("session.update", { session: { type: "realtime", audio } });
  }

  setMode(mode) {
    const isRefused = mode === "free" && this.phase === "on" && !this.canListen;
    if (isRefused) {
      this.view.notice("no_turns");
    }
    this.mode = isRefused ? "push" : mode;
    if (this.phase === "on") {
      this.socket.send("input_audio_buffer.clear");
      this.update();
    }
    this.change({ hold: "no", isHeard: false });
  }

  setVoice(voice) {
    this.voice = voice;
    if (this.phase === "on") {
      this.update();
    }
  }

  /* Open the microphone; raises a Fault. */
  async listen() {
    try {
      this.microphone ??= await Microphone.open((pcm, level) => this.hear(pcm, level));
    } catch (error) {
      throw deviceFault("microphone", error);
    }
    this.microphone.onEnded = () => {
      this.microphone.close();
      this.microphone = null;
      this.view.notice("microphone_ended");
      this.change({ isHeard: false, hold: "no" });
    };
    this.change({});
  }

  /* Take a tenth of a second from the microphone. */
  hear(pcm, level) {
    const isOpen = this.phase === "on" && (this.mode === "free" ? !this.isMuted : this.hold !== "no");
    if (this.state !== "speaking") {
      this.view.level(isOpen ? level : 0);
    }
    if (!isOpen) {
      return;
    }
    if (this.socket.send("input_audio_buffer.append", { audio: toBase64(pcm) })) {
      this.count({ sentMs: this.counts.sentMs + (pcm.byteLength * 500) / MICROPHONE_HZ });
    } else {
      this.view.notice("slow");
    }
    if (this.hold === "ending") {
      this.commit();
    }
  }

  /* Take a picture from the camera; dropped where nobody can ask about it. */
  see(image) {
    const isAsked = this.mode === "free" ? this.microphone && !this.isMuted : this.hold !== "no";
    if (this.phase === "on" && isAsked && this.socket.send("input_image_buffer.append", { image })) {
      this.count({ frames: this.counts.frames + 1 });
    }
  }

  setMuted(isMuted) {
    if (isMuted && this.phase === "on") {
      this.socket.send("input_audio_buffer.clear");
    }
    this.change({ isMuted, isHeard: false });
  }

  startHold() {
    if (this.phase !== "on" || !this.microphone || this.hold !== "no") {
      return;
    }
    this.interrupt();
    this.socket.send("input_audio_buffer.clear");
    this.heldAt = performance.now();
    this.framesBefore = this.counts.frames;
    this.change({ hold: "held" });
  }

  endHold() {
    if (this.hold !== "held") {
      return;
    }
    if (performance.now() - this.heldAt < LEAST_HOLD_MS) {
      this.socket.send("input_audio_buffer.clear");
      this.view.notice("short");
      this.change({ hold: "no" });
      return;
    }
    this.change({ hold: "ending" }); // the piece that is being recorded belongs to it
  }

  commit() {
    const seconds = (performance.now() - this.heldAt) / 1000;
    this.view.captions.spoken(seconds, this.counts.frames - this.framesBefore);
    this.socket.send("input_audio_buffer.commit");
    this.ask();
    this.change({ hold: "no" });
  }

  /* Say something in writing, and show a picture with it where there is one. */
  type(text, image = null) {
    this.interrupt();
    const content = [{ type: "input_text", text }];
    if (image !== null) {
      content.unshift({ type: "input_image", image_url: `data:image/jpeg;base64,${image}` });
      this.count({ frames: this.counts.frames + 1 });
    }
    const item = { type: "message", role: "user", content };
    this.socket.send("conversation.item.create", { item });
    this.view.captions.typed(text);
    this.ask();
    this.change({});
  }

  ask() {
    this.turn.ask(true);
    this.socket.send("response.create");
  }

  /* End the answer that is being made or heard. */
  interrupt() {
    if (this.phase !== "on") {
      return;
    }
    if (this.turn.isAwaited) {
      this.socket.send("response.cancel", { event_id: UNIMPORTANT });
    }
    this.hush();
  }

  /* Fall silent, and tell the server how much of the answer was heard. */
  hush() {
    const said = this.player.stop();
    if (this.turn.isAwaited) {
      this.view.captions.end(this.turn.itemId, "cut");
      this.turn.drop();
    }
    if (said !== null) {
      this.view.captions.end(said.itemId, "cut");
      this.socket.send("conversation.item.truncate", {
        event_id: UNIMPORTANT,
        item_id: said.itemId,
        content_index: 0,
        audio_end_ms: said.heardMs,
      });
    }
    this.view.level(0);
    this.change({});
  }

  take(event) {
    if (event.type !== "error") {
      this.fault = null; // it was not the reason for a close
    }
    this.on[event.type]?.call(this, event);
  }

  on = {
    "session.created"({ session }) {
      this.session = session;
      this.onGreeted();
    },
    "input_audio_buffer.speech_started"({ audio_start_ms }) {
      this.speechStart = audio_start_ms;
      this.framesBefore = this.counts.frames;
      this.isHeard = true;
      this.hush();
    },
    "input_audio_buffer.speech_stopped"({ audio_end_ms }) {
      const seconds = Math.max(0, audio_end_ms - this.speechStart) / 1000;
      this.view.captions.spoken(seconds, this.counts.frames - this.framesBefore);
      this.turn.ask(false);
      this.change({ isHeard: false });
    },
    "response.created"({ response }) {
      this.turn.begin(response.id);
      this.change({});
    },
    "response.output_item.added"({ item }) {
      this.turn.itemId = item.id;
    },
    "response.output_audio_transcript.delta"({ item_id, delta }) {
      this.view.captions.answer(item_id, delta);
    },
    "response.output_text.delta"({ item_id, delta }) {
      this.view.captions.answer(item_id, delta);
    },
    "response.output_audio.delta"({ item_id, response_id, delta }) {
      if (response_id !== this.turn.responseId || this.turn.isDropped) {
        return;
      }
      this.player.push(item_id, fromBase64(delta));
      const firstMs = this.turn.speak();
      if (firstMs !== null) {
        this.count({ firstMs });
      }
      this.change({});
    },
    "response.done"({ response }) {
      this.player.finish();
      const how = { incomplete: "incomplete", failed: "failed" }[response.status] ?? "";
      this.view.captions.end(this.turn.itemId, how);
      if (response.status === "failed") {
        this.view.notice("server", response.status_details?.error?.message);
      }
      this.turn.end();
      this.change({});
    },
    error({ error }) {
      if (error.event_id === UNIMPORTANT) {
        return;
      }
      this.fault = new Fault(CLOSING[error.code] ?? "server", error.message);
      if (this.turn.responseId === null) {
        this.turn.end(); // the question was not taken
      }
      if (this.phase === "on") {
        this.view.notice(this.fault.code, error.message);
        this.change({});
      }
    },
  };

  /* The connection is gone; what was said stays on the page. */
  lose() {
    const fault = this.fault ?? new Fault("lost");
    if (this.phase === "connecting") {
      this.fault = fault;
      this.onGreeted();
      return;
    }
    this.close();
    this.phase = "lost";
    this.view.notice(fault.code, fault.detail);
    this.change({});
  }

  /* End everything that is open. */
  close() {
    this.socket?.close();
    this.microphone?.close();
    this.player?.close();
    this.socket = this.microphone = this.player = null;
    this.attempt = null;
    this.onGreeted?.();
    this.turn.end();
    this.view.level(0);
    this.change({ phase: "off", hold: "no", isHeard: false });
  }

  count(values) {
    Object.assign(this.counts, values);
    this.view.counted(this.counts);
  }

  change(values) {
    Object.assign(this, values);
    this.view.changed();
  }
}

async function openPlayer(conversation) {
  try {
    return await Player.open({
      onLevel: (level) => {
        conversation.count({ heardMs: conversation.player.playedMs });
        if (conversation.state === "speaking") {
          conversation.view.level(level);
        }
      },
      onDrained: () => {
        conversation.view.level(0);
        conversation.change({});
      },
    });
  } catch (error) {
    throw error instanceof Fault ? error : new Fault("no_sound");
  }
}

/* Say what keeps a device from being used, by the browser's name for it. */
export function deviceFault(device, error) {
  const kinds = {
    NotAllowedError: "refused",
    SecurityError: "refused",
    NotFoundError: "missing",
    OverconstrainedError: "missing",
  };
  if (error instanceof Fault) {
    return error;
  }
  if (!window.isSecureContext) {
    return new Fault("insecure");
  }
  return new Fault(`${device}_${kinds[error.name] ?? "busy"}`, kinds[error.name] ? "" : error.message);
}
