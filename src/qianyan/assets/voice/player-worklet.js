/* On the audio thread: a queue of samples, played without gaps, silenced at once. */

import { loudness } from "./pcm.js";

const FADE_SAMPLES = 96; // 4 ms, so that nothing clicks where sound is cut off
const REPORT_SAMPLES = 1200; // twenty times a second
const LEAST_CUSHION = 3600; // samples that wait before the first is played
const MOST_CUSHION = 48000;

class PlayerProcessor extends AudioWorkletProcessor {
  constructor() {
    super();
    this.cushion = LEAST_CUSHION;
    this.unreported = 0;
    this.numPlayed = 0;
    this.numDropped = 0;
    this.clear();
    this.port.onmessage = ({ data }) => this.obey(data);
  }

  clear() {
    this.queue = [];
    this.numQueued = 0;
    this.offset = 0;
    this.isWhole = false; // nothing more is to come
    this.isFlowing = false;
  }

  obey(order) {
    if (order.samples) {
      this.isWhole = false;
      this.queue.push(order.samples);
      this.numQueued += order.samples.length;
    } else if (order.isWhole) {
      this.isWhole = true;
    } else {
      this.stop();
    }
  }

  /* Keep a few samples, fading out; drop the rest. */
  stop() {
    const rest = this.isFlowing ? this.read(new Float32Array(FADE_SAMPLES)) : [];
    this.numDropped += this.numQueued;
    this.clear();
    if (rest.length > 0) {
      const faded = rest.map((sample, index) => sample * (1 - index / rest.length));
      this.queue.push(faded);
      this.numQueued = faded.length;
      this.isFlowing = true;
    }
    this.isWhole = true;
  }

  read(output) {
    let filled = 0;
    while (filled < output.length && this.queue.length > 0) {
      const piece = this.queue[0].subarray(this.offset, this.offset + output.length - filled);
      output.set(piece, filled);
      filled += piece.length;
      this.offset += piece.length;
      if (this.offset === this.queue[0].length) {
        this.queue.shift();
        this.offset = 0;
      }
    }
    this.numQueued -= filled;
    return output.subarray(0, filled);
  }

  process(_, [[output]]) {
    if (!this.isFlowing && this.numQueued > 0) {
      this.isFlowing = this.isWhole || this.numQueued >= this.cushion;
    }
    if (this.isFlowing) {
      const played = this.read(output);
      this.numPlayed += played.length;
      this.report(played);
      if (this.numQueued === 0) {
        this.rest();
      }
    } else if (this.isWhole) {
      this.isWhole = false;
      this.tell({ isDrained: true });
    }
    return true;
  }

  /* The queue is empty: either all was said, or the server is slower than the voice. */
  rest() {
    this.isFlowing = false;
    if (!this.isWhole) {
      this.cushion = Math.min(2 * this.cushion, MOST_CUSHION);
    }
  }

  report(played) {
    this.unreported += played.length;
    if (this.unreported >= REPORT_SAMPLES) {
      this.unreported = 0;
      this.tell({ level: loudness(played) });
    }
  }

  tell(news) {
    this.port.postMessage({ numPlayed: this.numPlayed, numDropped: this.numDropped, ...news });
  }
}

registerProcessor("player", PlayerProcessor);
