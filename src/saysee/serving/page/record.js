// Recording captions: one picture after another, a recording of each, kept or said again.

import * as api from "./api.js";
import { $, announce, busy, clock, complain, count, fit, hush, show } from "./dom.js";
import { takeFiles } from "./files.js";
import { decode, Player } from "./sound.js";
import { Speak } from "./speak.js";

/** @param {object} about what /api/about said. */
export function startRecording(about) {
  show(true, $("record"));
  new Studio(about);
}

class Studio {
  #shown = []; // the pictures shown so far, each as the server told of it
  #at = -1; // which of them is shown now
  #take = null; // a recording that is not kept yet
  #sound = null; // what "Play" plays: the take, or the recording that is kept
  #skipped = new Set();
  #address = null; // of the picture
  #sure = false; // that what is kept shall be deleted
  #busy = false;

  constructor(about) {
    this.about = about;
    this.speak = new Speak($("studio"), {
      limit: about.limits.seconds,
      invitation: () => this.#invitation(),
      done: (blob) => this.#taken(blob),
      changed: (listening) => this.#listening(listening),
      failed: (text) => complain(text),
    });
    this.player = new Player($("play-take"), () => this.#drawSound());
    takeFiles($("choose-take"), about.limits.bytes, (file) => {
      if (!$("studio").hidden) this.#taken(file);
    });
    $("speaker-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#begin();
    });
    for (const [id, task] of [
      ["change", () => this.#welcome()],
      ["end-change", () => this.#welcome()],
      ["end-skipped", () => this.#start()],
      ["back", () => this.#show(this.#at - 1)],
      ["skip", () => this.#skip()],
      ["keep", () => this.#keep()],
      ["delete", () => this.#delete()],
    ]) {
      $(id).addEventListener("click", () => this.#work(task));
    }
    $("keys").checked = remembered("keys") !== "off";
    $("keys").addEventListener("change", () => remember("keys", $("keys").checked ? "on" : "off"));
    document.addEventListener("keydown", (event) => this.#key(event));
    this.#work(() => this.#welcome());
  }

  /** Ask who speaks, and in which language. */
  async #welcome() {
    this.speak.cancel();
    this.#stop();
    const { speakers, languages } = await this.#count();
    suggest($("speakers"), speakers);
    suggest($("languages"), languages);
    $("speaker").value = remembered("speaker") ?? "";
    $("language").value = remembered("language") ?? "";
    this.#only("speaker-form");
    $("speaker").focus();
  }

  #begin() {
    this.speaker = $("speaker").value.trim();
    this.language = $("language").value.trim();
    remember("speaker", this.speaker);
    remember("language", this.language);
    $("who").textContent = `${this.speaker}, ${this.language}`;
    this.#work(() => this.#start());
  }

  /** Go on where this speaker stopped in this language. */
  #start() {
    this.#shown = [];
    this.#skipped.clear();
    this.#at = -1;
    return this.#forward();
  }

  /** Show the picture after this one: one that was shown before, or the server's next. */
  async #forward() {
    if (this.#at + 1 === this.#shown.length) {
      const next = await api.nextPicture(this.speaker, this.language, this.#picture?.id);
      if (next === null) {
        await this.#end();
        return;
      }
      this.#shown.push(next);
    }
    await this.#show(this.#at + 1);
  }

  #skip() {
    this.#skipped.add(this.#picture.id);
    return this.#forward();
  }

  /** Keep the take, if there is one, and go on. */
  async #keep() {
    const picture = this.#picture;
    if (this.#take) {
      picture.recorded = await api.record(picture.id, this.#take, this.speaker, this.language, { waiting: busy });
      this.#skipped.delete(picture.id);
    }
    await this.#forward();
  }

  /** Delete the recording of this picture, when it is pressed for the second time. */
  async #delete() {
    if (!this.#sure) {
      this.#sure = true;
      this.#draw();
      return;
    }
    await api.forget(this.#picture.recorded.id);
    this.#picture.recorded = null;
    await this.#show(this.#at);
  }

  get #picture() {
    return this.#shown[this.#at];
  }

  async #show(at) {
    const picture = this.#shown[at];
    const address = URL.createObjectURL(await api.recordPicture(picture.id));
    const sound = picture.recorded && (await decode(await api.recording(picture.recorded.id)));
    this.#stop();
    this.#at = at;
    this.#sound = sound;
    this.player.load(sound);
    if (this.#address) URL.revokeObjectURL(this.#address);
    this.#address = address;
    $("subject").alt = `Picture ${picture.position}`;
    this.#only("studio");
    fit($("subject"), address).catch(() => complain(`${picture.name} cannot be shown. Skip it.`));
    await this.#progress(picture);
    this.#draw();
    // the button that was pressed may be gone, and the keyboard goes on from here
    if (!document.activeElement?.offsetParent) this.speak.button.focus({ preventScroll: true });
  }

  /** Say at the top how much there is, and give what the server knows. */
  async #count() {
    const known = await api.recorded();
    $("about").textContent = `${count(known.pictures, "picture")}, ${count(known.recorded, "recording")} so far`;
    return known;
  }

  async #progress(picture) {
    const { pictures } = await this.#count();
    $("position").textContent = `${picture.position} of ${pictures}`;
    $("done").max = pictures;
    $("done").value = picture.position - 1;
    announce(`Picture ${picture.position} of ${pictures}${picture.recorded ? ", recorded" : ""}`);
  }

  async #end() {
    this.#stop();
    const { needed } = await this.#count();
    const left = this.#skipped.size;
    $("end-title").textContent = left ? "That was the last picture." : "All pictures are done.";
    const done = left
      ? `${count(left, "picture")} ${left === 1 ? "was" : "were"} skipped.`
      : `${this.speaker}, ${this.language}: thank you. Every recording is in the manifest.`;
    $("end-text").textContent = needed ? `${done} The manifest cannot be trained on yet: ${needed}.` : done;
    show(left > 0, $("end-skipped"));
    this.#only("end");
    $("end-title").focus();
  }

  async #taken(blob) {
    this.#stop();
    this.#take = blob;
    this.#sound = await decode(blob);
    if (this.#take !== blob) return;
    this.player.load(this.#sound);
    this.#draw();
    announce("Recorded. Keep it, or say it again.");
    this.player.play();
  }

  /** Forget what is not kept. */
  #stop() {
    this.#sure = false;
    this.player.load(null);
    this.#sound?.release();
    this.#sound = this.#take = null;
  }

  #listening(listening) {
    if (listening) {
      hush();
      this.player.pause();
    }
    this.#draw();
  }

  #draw() {
    if (this.#at < 0) return;
    const listening = this.speak.state !== "rest";
    const has = Boolean(this.#take || this.#picture.recorded);
    $("back").disabled = listening || this.#at === 0;
    $("skip").disabled = listening;
    show(!listening && !has, $("skip"));
    show(!listening && !this.#take && Boolean(this.#picture.recorded), $("delete"));
    show(!listening && has, $("keep"));
    show(!listening && Boolean(this.#sound), $("play-take"));
    $("delete").textContent = this.#sure ? "Yes, delete it" : "Delete";
    $("keep").textContent = this.#take ? "Keep" : "Next";
    $("studio").querySelector(".speak-name").textContent = has ? "Say it again" : "Speak";
    $("studio").classList.toggle("has-take", has);
    this.speak.refresh();
    if (!listening) this.#drawSound();
  }

  #drawSound() {
    const sound = this.#sound;
    if (!sound) {
      this.speak.wave.rest();
      return;
    }
    this.speak.wave.still(sound, this.player.playing ? sound.audio.currentTime / sound.duration : null);
    this.speak.clock.textContent = clock(Math.round(sound.duration));
  }

  #invitation() {
    if (this.#take) return "Keep it, or press the microphone to say it again.";
    if (this.#picture?.recorded) return "This picture has its recording. Say it again, or go on.";
    return "Hold the button while you say what you see, or press once and again when you are done.";
  }

  #key(event) {
    if ($("studio").hidden || this.speak.state !== "rest" || !$("keys").checked) return;
    if (event.repeat || event.ctrlKey || event.altKey || event.metaKey) return;
    const button = document.activeElement?.closest("button");
    const free = !button || button === this.speak.button; // on other buttons Enter is theirs; here Space speaks
    const actions = { s: $("skip"), p: $("play-take"), enter: free ? $("keep") : null };
    const action = actions[event.key.toLowerCase()];
    if (action && !action.hidden && !action.disabled) {
      event.preventDefault();
      action.click();
    }
  }

  /** Do one thing with the server at a time; what goes wrong is said, and can be tried again. */
  async #work(task) {
    if (this.#busy) return;
    this.#busy = true;
    $("studio").setAttribute("aria-busy", "true");
    hush();
    try {
      await task();
    } catch (error) {
      if (!(error instanceof api.ApiError)) throw error;
      complain(error.message, error.status === 0 || error.status >= 500 ? () => this.#work(task) : null);
    } finally {
      this.#busy = false;
      $("studio").setAttribute("aria-busy", "false");
    }
  }

  #only(id) {
    for (const part of ["speaker-form", "studio", "end"]) show(part === id, $(part));
  }
}

function suggest(list, values) {
  list.replaceChildren(...values.map((value) => Object.assign(document.createElement("option"), { value })));
}

function remembered(name) {
  try {
    return localStorage.getItem(`saysee-${name}`);
  } catch {
    return null; // storage is forbidden: it is asked again
  }
}

function remember(name, value) {
  try {
    localStorage.setItem(`saysee-${name}`, value);
  } catch {
    // as above
  }
}
