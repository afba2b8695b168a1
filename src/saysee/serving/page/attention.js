// Where the model looked: the heat map beside the moment of the question, in step with playing it.

import { $, show } from "./dom.js";
import { drawHeat, frameAt, frameOf, isFlat, meanOf } from "./heat.js";
import { Player } from "./sound.js";
import { Waveform } from "./waveform.js";

export class Attention {
  #heat = null;
  #sound = null;

  constructor() {
    this.open = false;
    this.wave = new Waveform($("track-wave"));
    this.player = new Player($("play-moments"), (seconds) => {
      $("average").checked = false;
      $("moment").value = seconds;
      this.#draw();
    });
    $("moment").addEventListener("input", () => {
      $("average").checked = false;
      this.player.seek($("moment").valueAsNumber);
      this.#draw();
    });
    $("average").addEventListener("change", () => {
      this.player.pause();
      this.#draw();
    });
  }

  /**
   * @param {object} heat of `api.attention`.
   * @param {?Sound} sound of the question; without one the moments can be gone through, but not heard.
   */
  show(heat, sound) {
    this.open = true;
    this.#heat = heat;
    this.#sound = sound;
    this.player.load(sound);
    $("moment").max = sound?.duration ?? heat.from + heat.frames * heat.step;
    show(true, $("attention"), $("heat"));
    show(isFlat(heat), $("flat"));
    this.#draw();
    $("attention").scrollIntoView({ block: "nearest" });
  }

  /** Take the heat map off the picture; the next one comes. */
  clear() {
    this.player.pause();
    this.#heat = null;
    show(false, $("heat"));
  }

  hide() {
    this.open = false;
    this.clear();
    $("average").checked = true;
    $("moment").value = 0;
    show(false, $("attention"));
  }

  #draw() {
    const heat = this.#heat;
    if (!heat) return;
    const seconds = $("moment").valueAsNumber;
    const average = $("average").checked;
    const frame = frameAt(heat, seconds);
    const nothing = new Float32Array(heat.rows * heat.columns);
    const grid = average ? meanOf(heat) : frame === null ? nothing : frameOf(heat, frame);
    drawHeat($("heat"), grid, heat.rows, heat.columns);
    $("moment").setAttribute("aria-valuetext", `${seconds.toFixed(1)} seconds`);
    $("moment-clock").textContent = average ? "" : `${seconds.toFixed(2)} s`;
    if (this.#sound) this.wave.still(this.#sound, average ? null : seconds / this.#sound.duration);
    else this.wave.rest();
  }
}
