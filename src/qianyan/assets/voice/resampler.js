/* From one sample rate to another: a low-pass filter (windowed sinc) read at the new times. */

const ZERO_CROSSINGS = 12;
const STEPS_PER_SAMPLE = 256; // of the table that the filter is kept in
const PASSED = 0.92; // of the band that both rates can carry

export class Resampler {
  constructor(fromHz, toHz) {
    this.step = fromHz / toHz;
    const cutoff = Math.min(1, toHz / fromHz) * PASSED;
    this.reach = Math.ceil(ZERO_CROSSINGS / cutoff); // input samples on each side
    this.filter = makeFilter(cutoff, this.reach);
    this.kept = new Float32Array(this.reach);
    this.at = this.reach; // where in `kept` and what follows it the next sample stands
  }

  /* Take samples, give those that are certain now. */
  push(samples) {
    const input = new Float32Array(this.kept.length + samples.length);
    input.set(this.kept);
    input.set(samples, this.kept.length);
    const output = [];
    while (this.at + this.reach < input.length) {
      output.push(this.read(input));
      this.at += this.step;
    }
    const done = Math.max(0, Math.floor(this.at) - this.reach);
    this.kept = input.slice(done);
    this.at -= done;
    return Float32Array.from(output);
  }

  read(input) {
    const middle = Math.floor(this.at);
    let sum = 0;
    for (let index = middle - this.reach + 1; index <= middle + this.reach; index += 1) {
      const distance = Math.abs(index - this.at);
      sum += input[index] * this.filter[Math.round(distance * STEPS_PER_SAMPLE)];
    }
    return sum;
  }
}

function makeFilter(cutoff, reach) {
  const filter = new Float32Array(reach * STEPS_PER_SAMPLE + 2);
  for (let index = 0; index <= reach * STEPS_PER_SAMPLE; index += 1) {
    const distance = index / STEPS_PER_SAMPLE;
    const angle = Math.PI * cutoff * distance;
    const sinc = index === 0 ? 1 : Math.sin(angle) / angle;
    const slope = Math.cos((Math.PI * distance) / (2 * reach)) ** 2; // Hann's window
    filter[index] = cutoff * sinc * slope;
  }
  return filter;
}
