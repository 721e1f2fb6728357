/* Samples as the socket carries them: 16-bit little-endian integers, in base64. */

const FULL_SCALE = 32767;
const CHARACTERS_AT_ONCE = 8192; // arguments that every engine takes

export function toBase64(buffer) {
  const bytes = new Uint8Array(buffer);
  let text = "";
  for (let at = 0; at < bytes.length; at += CHARACTERS_AT_ONCE) {
    text += String.fromCharCode(...bytes.subarray(at, at + CHARACTERS_AT_ONCE));
  }
  return btoa(text);
}

export function fromBase64(text) {
  const bytes = Uint8Array.from(atob(text), (character) => character.charCodeAt(0));
  const view = new DataView(bytes.buffer);
  const samples = new Float32Array(bytes.length >> 1);
  for (let index = 0; index < samples.length; index += 1) {
    samples[index] = view.getInt16(2 * index, true) / FULL_SCALE;
  }
  return samples;
}

export function toPcm16(samples) {
  const view = new DataView(new ArrayBuffer(2 * samples.length));
  samples.forEach((sample, index) => {
    const value = Math.max(-1, Math.min(1, sample));
    view.setInt16(2 * index, Math.round(value * FULL_SCALE), true);
  });
  return view.buffer;
}

/* How loud samples are, 0 for silence to 1 for the loudest, in the ear's own steps. */
export function loudness(samples) {
  const power = samples.reduce((sum, sample) => sum + sample * sample, 0) / (samples.length || 1);
  const decibels = 10 * Math.log10(power + 1e-9);
  return Math.max(0, Math.min(1, (decibels + 60) / 54));
}
