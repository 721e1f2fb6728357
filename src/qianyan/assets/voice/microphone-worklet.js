/* On the audio thread: what the microphone hears, as pieces of 16-bit samples at 16 kHz. */

import { loudness, toPcm16 } from "./pcm.js";
import { Resampler } from "./resampler.js";

const PIECE_SAMPLES = 1600; // a tenth of a second

class MicrophoneProcessor extends AudioWorkletProcessor {
  constructor(options) {
    super();
    this.resampler = new Resampler(sampleRate, options.processorOptions.rateHz);
    this.piece = new Float32Array(PIECE_SAMPLES);
    this.filled = 0;
  }

  process(inputs) {
    const channels = inputs[0];
    if (channels.length > 0) {
      this.take(this.resampler.push(channels[0]));
    }
    return true;
  }

  take(samples) {
    for (const sample of samples) {
      this.piece[this.filled] = sample;
      this.filled += 1;
      if (this.filled === PIECE_SAMPLES) {
        const pcm = toPcm16(this.piece);
        this.port.postMessage({ pcm, level: loudness(this.piece) }, [pcm]);
        this.filled = 0;
      }
    }
  }
}

registerProcessor("microphone", MicrophoneProcessor);
