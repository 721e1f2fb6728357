/* The camera: a preview on the page, and a small JPEG of it about once a second. */

import { toBase64 } from "./pcm.js";

const EVERY_MS = 1000;
const LONGEST_SIDE = 640;
const QUALITY = 0.8;

export class Camera {
  /* Ask for a camera, one that looks away from the user unless it is named, and show it in
     `video`; `onFrame` gets JPEGs in base64. */
  static async open(video, deviceId, onFrame) {
    const which = deviceId ? { deviceId: { exact: deviceId } } : { facingMode: "environment" };
    const size = { width: { ideal: 1280 }, height: { ideal: 720 } };
    const stream = await navigator.mediaDevices.getUserMedia({ video: { ...which, ...size } });
    return new Camera(stream, video, onFrame);
  }

  constructor(stream, video, onFrame) {
    this.stream = stream;
    this.video = video;
    this.canvas = document.createElement("canvas");
    this.onEnded = () => {};
    stream.getVideoTracks()[0].onended = () => this.onEnded();
    video.srcObject = stream;
    this.onFrame = onFrame;
    this.timer = setInterval(() => this.look(), EVERY_MS);
  }

  /* Hand on what is seen now. */
  async look() {
    const frame = await this.take();
    if (frame !== null) {
      this.onFrame(frame);
    }
  }

  /* Give what is seen now; null before the camera has shown anything, and after it is closed. */
  async take() {
    const { videoWidth: width, videoHeight: height } = this.video;
    if (width === 0) {
      return null;
    }
    const scale = Math.min(1, LONGEST_SIDE / Math.max(width, height));
    this.canvas.width = Math.round(width * scale);
    this.canvas.height = Math.round(height * scale);
    const pen = this.canvas.getContext("2d");
    pen.drawImage(this.video, 0, 0, this.canvas.width, this.canvas.height);
    const blob = await new Promise((done) => this.canvas.toBlob(done, "image/jpeg", QUALITY));
    return blob !== null && this.stream.active ? toBase64(await blob.arrayBuffer()) : null;
  }

  get isFacingUser() {
    return this.stream.getVideoTracks()[0].getSettings().facingMode === "user";
  }

  /* Name the camera after this one; null where it is the only one. */
  async findNext() {
    const devices = await navigator.mediaDevices.enumerateDevices();
    const ids = devices.filter(({ kind }) => kind === "videoinput").map((one) => one.deviceId);
    const here = ids.indexOf(this.stream.getVideoTracks()[0].getSettings().deviceId);
    return ids.length < 2 ? null : ids[(here + 1) % ids.length];
  }

  close() {
    clearInterval(this.timer);
    this.stream.getTracks().forEach((track) => track.stop());
    this.video.srcObject = null;
  }
}
