/* One answer on its way: which it is, whether it may be heard, how long it took to begin. */

export class Turn {
  constructor() {
    this.end();
    this.isDropped = false; // interrupted: what still comes of it is not played
    this.isNextDropped = false; // interrupted before it had begun
  }

  /* The question is put, the answer is waited for; `isOurs` where this page asks for it. */
  ask(isOurs) {
    this.askedAt = performance.now();
    this.isOurs = isOurs;
  }

  begin(responseId) {
    this.responseId = responseId;
    this.itemId = null;
    this.isSpoken = false;
    this.isDropped = this.isNextDropped;
    this.isNextDropped = false;
  }

  /* Play no more of it. */
  drop() {
    this.isDropped = true;
    this.isNextDropped = this.responseId === null && this.askedAt !== null && this.isOurs;
    this.askedAt = null;
  }

  /* Note a piece of sound; give the milliseconds to the first, and null for the others. */
  speak() {
    this.isSpoken = true;
    const waited = this.askedAt === null ? null : performance.now() - this.askedAt;
    this.askedAt = null;
    return waited;
  }

  get isAwaited() {
    return this.askedAt !== null || (this.responseId !== null && !this.isDropped);
  }

  end() {
    this.responseId = null;
    this.itemId = null;
    this.isSpoken = false;
    this.askedAt = null;
  }
}
