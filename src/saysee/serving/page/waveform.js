// The line of the page: dots at rest, bars that flow out of the button while somebody speaks, then what was said.

import { prefersStillness } from "./dom.js";

const BAR = 3;
const GAP = 2;
const STEP = BAR + GAP; // as in the answer sheet
const CLEAR = 14; // pixels around a button that lies on the line

/** Draws on a canvas, in its CSS `color`, as large as CSS makes it. */
export class Waveform {
  #draw = () => this.#rest();

  /**
   * @param {HTMLCanvasElement} canvas
   * @param {?HTMLElement} source what the bars flow out of; none: the middle of the line.
   */
  constructor(canvas, source = null) {
    Object.assign(this, { canvas, source, context: canvas.getContext("2d") });
    new ResizeObserver(() => this.redraw()).observe(canvas);
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => this.redraw());
  }

  /** A line of dots. */
  rest() {
    this.#show(() => this.#rest());
  }

  /**
   * Loudness as it comes in.
   * @param {number[]} levels from 0 to 1, the newest last.
   * @param {number} phase how far it is to the next level, from 0 to 1.
   */
  flow(levels, phase) {
    this.#show(() => this.#flow(levels, phase));
  }

  /**
   * A whole recording.
   * @param {Sound} sound
   * @param {?number} part of it that has been played, from 0 to 1; null: it is not being played.
   */
  still(sound, part = null) {
    this.#show(() => this.#still(sound, part));
  }

  redraw() {
    const { canvas, context } = this;
    const scale = window.devicePixelRatio || 1;
    const [width, height] = [canvas.clientWidth, canvas.clientHeight];
    if (!width) return;
    canvas.width = Math.round(width * scale);
    canvas.height = Math.round(height * scale);
    context.setTransform(scale, 0, 0, scale, 0, 0);
    context.fillStyle = getComputedStyle(canvas).color;
    Object.assign(this, { width, height });
    this.#draw();
  }

  #show(draw) {
    this.#draw = draw;
    this.redraw();
  }

  #rest() {
    this.context.globalAlpha = 0.4;
    const [left, right] = this.#sides();
    for (let x = left; x >= 0; x -= STEP) this.#bar(x, 0);
    for (let x = right; x < this.width; x += STEP) this.#bar(x, 0);
  }

  #flow(levels, phase) {
    const [left, right] = this.#sides();
    const still = prefersStillness();
    const last = levels.length - 1;
    const many = Math.ceil(this.width / STEP) + 1;
    for (let index = 0; index < many; index += 1) {
      // without motion a meter: the newest level, lower with the distance
      const level = still ? (levels[last] ?? 0) * Math.exp(-index / 8) : (levels[last - index] ?? 0);
      const away = (index + (still ? 0 : phase)) * STEP;
      this.context.globalAlpha = level < 0.02 ? 0.4 : Math.max(0.25, 1 - away / this.width);
      if (left - away >= 0) this.#bar(left - away, level);
      if (right + away < this.width) this.#bar(right + away, level);
    }
  }

  #still(sound, part) {
    const bars = Math.floor((this.width + GAP) / STEP);
    if (this.peaksOf !== sound || this.peaks.length !== bars) {
      Object.assign(this, { peaksOf: sound, peaks: sound.peaks(bars) });
    }
    this.peaks.forEach((peak, index) => {
      const played = part === null || (index + 0.5) / bars <= part;
      this.context.globalAlpha = played ? 1 : 0.4;
      this.#bar(index * STEP, peak);
    });
  }

  /** Where the bars begin: at both sides of the source, or in the middle. */
  #sides() {
    const own = this.canvas.getBoundingClientRect();
    const other = this.source?.getBoundingClientRect();
    const middle = (other ? other.left + other.width / 2 : own.left + own.width / 2) - own.left;
    const onTheLine = other && other.top < own.bottom && other.bottom > own.top;
    const radius = onTheLine ? other.width / 2 + CLEAR : GAP / 2;
    return [middle - radius - BAR, middle + radius];
  }

  #bar(x, level) {
    const height = Math.max(2, level * this.height);
    const { context } = this;
    context.beginPath();
    context.roundRect(x, (this.height - height) / 2, BAR, height, Math.min(BAR, height) / 2);
    context.fill();
  }
}
