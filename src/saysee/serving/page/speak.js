// Press to speak. Hold the button or the space bar while speaking, or press once, speak, and press again: the same
// button works for a mouse, a finger, a keyboard, a switch and a screen reader.

import { announce, clock, show } from "./dom.js";
import { explain, Recording } from "./recorder.js";
import { Waveform } from "./waveform.js";

const HOLD = 0.4; // seconds: who lets go sooner after it began to record meant to press, not to hold
const LEAST = 0.2; // seconds; less is a slip
const SPARE = 0.3; // seconds: recorders go on a little after they are told to stop, and the limit is the server's
const LEVELS = 20; // a second

const OTHERS_KEYS = "input, select, textarea, summary, audio, a, [contenteditable]";

export class Speak {
  #recording = null;
  #heldBy = null; // "pointer" or "key" while it is held down
  #latched = false;
  #attempt = null; // to open the microphone; another one once it is cancelled

  /**
   * @param {HTMLElement} root with `.speak`, `.wave`, `.clock`, `.hint` and `.cancel` in it.
   * @param {object} options
   * @param {number} options.limit seconds.
   * @param {function(Blob)} options.done called with each recording.
   * @param {function(boolean)} options.changed called when it begins and ends to listen.
   * @param {function(string)} options.failed called with what went wrong.
   * @param {function(): string} options.invitation what the hint says when nothing is recorded.
   */
  constructor(root, { limit, done, changed, failed, invitation }) {
    const part = (name) => root.querySelector(`.${name}`);
    Object.assign(this, { root, limit: limit - SPARE, done, changed, failed, invitation, state: "rest" });
    Object.assign(this, { button: part("speak"), clock: part("clock"), hint: part("hint") });
    this.cancelling = part("cancel");
    this.wave = new Waveform(part("wave"), this.button);
    this.cancelling.addEventListener("click", () => this.cancel());
    this.#listenToPointers();
    this.#listenToKeys();
    document.addEventListener("visibilitychange", () => {
      if (document.hidden && this.state !== "rest") {
        this.cancel();
        this.failed("Nothing was recorded: the page was left while it listened.");
      }
    });
    this.refresh();
  }

  /** Begin to listen, if nothing is recorded now. */
  async begin() {
    if (this.state !== "rest") return;
    const attempt = (this.#attempt = Symbol("attempt"));
    this.#enter("opening");
    let recording;
    try {
      recording = await Recording.begin();
    } catch (error) {
      if (attempt !== this.#attempt) return;
      this.#rest();
      this.failed(explain(error));
      return;
    }
    if (attempt !== this.#attempt) {
      recording.end(); // cancelled while the browser asked, and nobody waits for it
      return;
    }
    this.#recording = recording;
    this.#latched = this.#heldBy === null;
    this.#enter("listening");
    this.#follow(recording, [], 0);
    setTimeout(() => recording.end(), this.limit * 1000);
    this.#take(recording, await recording.ended);
  }

  /** End, and keep nothing. */
  cancel() {
    if (this.state === "rest") return;
    const recording = this.#recording;
    this.#rest();
    recording?.end();
    announce("Cancelled");
  }

  /** Show the state anew: hint, button, line. */
  refresh() {
    const listening = this.state === "listening";
    this.button.setAttribute("aria-pressed", String(this.state !== "rest"));
    this.root.dataset.state = this.state;
    show(this.state !== "rest", this.cancelling);
    if (this.state === "rest") this.hint.textContent = this.invitation();
    else if (!listening) this.hint.textContent = "Opening the microphone. If the browser asks, allow it.";
    else this.hint.textContent = `Listening. ${this.#latched ? "Press again" : "Let go"} when you have said it.`;
    if (!listening) this.clock.textContent = "";
  }

  #enter(state) {
    this.state = state;
    this.refresh();
    this.changed(state !== "rest");
  }

  #press(by) {
    if (this.state === "rest") {
      this.#heldBy = by;
      this.begin();
    } else if (this.state === "listening") {
      this.#recording.end();
    } else {
      this.cancel();
    }
  }

  #release(by) {
    if (this.#heldBy !== by) return;
    this.#heldBy = null;
    if (this.state !== "listening") return;
    if (this.#recording.seconds >= HOLD) {
      this.#recording.end();
    } else {
      this.#latched = true;
      this.refresh();
    }
  }

  #take(recording, blob) {
    if (recording !== this.#recording) return; // cancelled
    const { seconds } = recording;
    this.#rest();
    if (seconds < LEAST || blob.size === 0) this.failed("That was too short. Press, speak, and press again.");
    else this.done(blob);
  }

  #rest() {
    this.#recording = this.#attempt = this.#heldBy = null;
    this.wave.rest();
    this.#enter("rest");
  }

  #follow(recording, levels, loudest) {
    if (recording !== this.#recording) return;
    const { seconds } = recording;
    const due = Math.floor(seconds * LEVELS);
    let level = Math.max(loudest, recording.level());
    if (levels.length < due) {
      while (levels.length < due) levels.push(level);
      level = 0;
    }
    this.wave.flow(levels, seconds * LEVELS - due);
    this.clock.textContent = `${clock(seconds)} / ${clock(this.limit + SPARE)}`;
    requestAnimationFrame(() => this.#follow(recording, levels, level));
  }

  #listenToPointers() {
    const { button } = this;
    let byPointer = false;
    button.addEventListener("pointerdown", (event) => {
      if (event.button !== 0) return;
      byPointer = true;
      button.setPointerCapture(event.pointerId);
      this.#press("pointer");
    });
    for (const name of ["pointerup", "pointercancel"]) button.addEventListener(name, () => this.#release("pointer"));
    // a click without a pointer is Enter, a switch or a screen reader: there is nothing to hold
    button.addEventListener("click", () => {
      if (!byPointer) this.#press(null);
      byPointer = false;
    });
    button.addEventListener("contextmenu", (event) => event.preventDefault()); // of a long touch
  }

  #listenToKeys() {
    let waiting = null; // the space bar is down on another button: a tap is that button's, holding it means to speak
    const speak = () => {
      waiting = null;
      this.#press("key");
    };
    document.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && this.state !== "rest") {
        event.preventDefault();
        this.cancel();
      }
      if (event.key !== " " || event.ctrlKey || event.altKey || event.metaKey) return;
      if (this.root.offsetParent === null || document.querySelector("dialog[open]")) return;
      const target = event.target instanceof Element ? event.target : document.body;
      if (target.closest(OTHERS_KEYS)) return;
      const other = target.closest("button");
      if (other && other !== this.button) {
        if (!event.repeat && waiting === null) waiting = setTimeout(speak, HOLD * 1000);
        return;
      }
      event.preventDefault(); // neither scroll nor click
      if (!event.repeat) this.#press("key");
    });
    document.addEventListener("keyup", (event) => {
      if (event.key !== " ") return;
      if (waiting !== null) {
        clearTimeout(waiting);
        waiting = null;
      } else if (this.#heldBy === "key" || event.target === this.button) {
        event.preventDefault();
      }
      this.#release("key");
    });
    window.addEventListener("blur", () => this.#release("key")); // the key comes up elsewhere
  }
}
