/* Who said what and when. What a model says is a stranger's text: it is shown, never parsed. */

import { say, sayTime } from "./texts.js";

export class Captions {
  constructor(list, scroll, onCount) {
    this.list = list;
    this.scroll = scroll;
    this.onCount = onCount;
    this.byId = new Map();
  }

  typed(text) {
    this.add("you").querySelector(".words").textContent = text;
  }

  /* Note that something was said to the model; there are no words of it. */
  spoken(seconds, frames) {
    const entry = this.add("you");
    entry.dataset.seconds = seconds.toFixed(1);
    entry.dataset.frames = frames;
    this.write(entry);
  }

  /* Go on with an answer, which begins with its first words. */
  answer(itemId, words) {
    let entry = this.byId.get(itemId);
    if (entry === undefined) {
      entry = this.add("answer");
      this.byId.set(itemId, entry);
      this.scroll.setAttribute("aria-busy", "true"); // read out once it is whole
    }
    entry.querySelector(".words").append(words);
    this.follow();
  }

  /* Note how an answer ended, where it was not by itself: `cut`, `incomplete` or `failed`. */
  end(itemId, how = "") {
    this.scroll.removeAttribute("aria-busy");
    const entry = this.byId.get(itemId);
    if (entry !== undefined && how && !entry.dataset.how) {
      entry.dataset.how = how;
      this.write(entry);
    }
  }

  clear() {
    this.list.replaceChildren();
    this.byId.clear();
    this.onCount(0);
  }

  translate() {
    for (const entry of this.list.children) {
      this.write(entry);
    }
  }

  add(role) {
    const now = new Date();
    const entry = document.createElement("li");
    entry.dataset.role = role;
    const who = make("span", "who");
    const time = make("time", "time");
    time.dateTime = now.toISOString();
    time.textContent = sayTime(now);
    const head = make("p", "head");
    head.append(who, time, make("span", "how"));
    const words = make("p", "words");
    words.dir = "auto";
    entry.append(head, words);
    this.list.append(entry);
    this.write(entry);
    this.onCount(this.list.children.length);
    this.follow();
    return entry;
  }

  /* Write what is in the page's language. */
  write(entry) {
    const { role, how, seconds, frames } = entry.dataset;
    entry.querySelector(".who").textContent = say(role);
    entry.querySelector(".how").textContent = how ? say(how) : "";
    if (seconds !== undefined) {
      const name = frames === "0" ? "spoken" : "spoken_frames";
      entry.querySelector(".words").textContent = say(name, { seconds, frames });
    }
  }

  /* Keep the newest in view, unless the reader has gone back. */
  follow() {
    const { scrollHeight, scrollTop, clientHeight } = this.scroll;
    if (scrollHeight - scrollTop - clientHeight < 160) {
      this.scroll.scrollTop = scrollHeight;
    }
  }
}

function make(tag, name) {
  const element = document.createElement(tag);
  element.className = name;
  return element;
}
