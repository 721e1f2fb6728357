/* The loudspeaker: pieces of speech one after the other, and how much of each was heard. */

import { addWorklet } from "./server.js";

export const PLAYER_HZ = 24000;

export class Player {
  /* Open the loudspeaker; `onLevel` is told how loud it is, `onDrained` when all was said. */
  static async open({ onLevel, onDrained }) {
    const context = new AudioContext({ sampleRate: PLAYER_HZ, latencyHint: "interactive" });
    try {
      await addWorklet(context, "player-worklet.js");
      await context.resume();
    } catch (error) {
      context.close();
      throw error;
    }
    return new Player(context, onLevel, onDrained);
  }

  constructor(context, onLevel, onDrained) {
    this.context = context;
    this.numSent = 0; // samples, as are the next two
    this.numPlayed = 0;
    this.numDropped = 0;
    this.items = []; // the last two, and where among all samples each begins
    this.node = new AudioWorkletNode(context, "player", {
      numberOfInputs: 0,
      outputChannelCount: [1],
    });
    this.node.connect(context.destination);
    this.node.port.onmessage = ({ data }) => {
      this.numPlayed = data.numPlayed;
      this.numDropped = data.numDropped;
      if (!data.isDrained) {
        onLevel(data.level);
      } else if (!this.isBusy) {
        onDrained();
      }
    };
  }

  /* Whether anything is left to be said. */
  get isBusy() {
    return this.numPlayed + this.numDropped < this.numSent;
  }

  get playedMs() {
    return Math.floor((this.numPlayed * 1000) / PLAYER_HZ);
  }

  push(itemId, samples) {
    if (this.items.at(-1)?.itemId !== itemId) {
      const start = this.numSent - this.numDropped;
      this.items = [...this.items.slice(-1), { itemId, start }];
    }
    this.numSent += samples.length;
    this.node.port.postMessage({ samples }, [samples.buffer]);
  }

  /* Say that nothing more is to come for now. */
  finish() {
    this.node.port.postMessage({ isWhole: true });
  }

  /* Fall silent; give what was being said and how many milliseconds of it were heard. */
  stop() {
    if (!this.isBusy) {
      return null;
    }
    this.node.port.postMessage({ isStopped: true });
    const { itemId, start } = this.items.at(-1);
    const unheard = (this.context.outputLatency || 0) * PLAYER_HZ;
    const heard = Math.max(0, this.numPlayed - unheard - start);
    return { itemId, heardMs: Math.floor((heard * 1000) / PLAYER_HZ) };
  }

  close() {
    this.node.port.onmessage = null; // what is on its way comes too late
    this.context.close();
  }
}
