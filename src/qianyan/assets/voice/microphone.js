/* The microphone: pieces of sound as the server takes them, while it is not muted. */

import { addWorklet } from "./server.js";

export const MICROPHONE_HZ = 16000;
const WANTED = { echoCancellation: true, noiseSuppression: true, autoGainControl: true, channelCount: 1 };

export class Microphone {
  /* Ask for the microphone and listen; `onPiece(pcm, level)` gets ten pieces a second. */
  static async open(onPiece) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: WANTED });
    const context = new AudioContext();
    try {
      await addWorklet(context, "microphone-worklet.js");
      await context.resume();
    } catch (error) {
      stream.getTracks().forEach((track) => track.stop());
      context.close();
      throw error;
    }
    const lock = navigator.wakeLock?.request("screen").catch(() => null); // telephones doze off
    return new Microphone({ stream, context, lock }, onPiece);
  }

  constructor({ stream, context, lock }, onPiece) {
    Object.assign(this, { stream, context, lock });
    this.onEnded = () => {};
    this.node = new AudioWorkletNode(context, "microphone", {
      numberOfOutputs: 0,
      channelCount: 1,
      channelCountMode: "explicit",
      processorOptions: { rateHz: MICROPHONE_HZ },
    });
    this.node.port.onmessage = ({ data }) => onPiece(data.pcm, data.level);
    context.createMediaStreamSource(stream).connect(this.node);
    for (const track of stream.getAudioTracks()) {
      track.onended = () => this.onEnded(); // unplugged, or refused meanwhile
    }
  }

  close() {
    this.node.port.onmessage = null;
    this.stream.getTracks().forEach((track) => track.stop());
    this.context.close();
    this.lock?.then((lock) => lock?.release());
  }
}
