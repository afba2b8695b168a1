// Asking for pictures: a question by voice or file, ranked answers, and what looks like one of them.

import * as api from "./api.js";
import { $, announce, busy, clock, complain, count, hush, make, show, signed } from "./dom.js";
import { takeFiles } from "./files.js";
import { Large } from "./large.js";
import { decode, Player } from "./sound.js";
import { Speak } from "./speak.js";

const MISFIT = "Nothing here fits well.";

/** @param {object} about what /api/about said. */
export function startSearch(about) {
  show(true, $("search"));
  new Search(about);
}

class Search {
  #views = []; // what is shown, on top of what it came from
  #running = new AbortController();
  #thumbnails = new Map(); // id -> address of a blob

  constructor(about) {
    this.about = about;
    this.noun = about.kind; // "picture" or "recording"
    $("about").textContent = `${count(about.items, this.noun)}, model ${about.model}`;
    $("top").value = about.top;
    $("top").defaultValue = about.top;

    this.speak = new Speak($("ask"), {
      limit: about.limits.seconds,
      invitation: () =>
        matchMedia("(hover: hover)").matches
          ? "Hold the button or the space bar while you speak, or press once and again when you are done."
          : "Hold the button while you speak, or tap it once and again when you are done.",
      done: (blob) => this.ask(blob),
      changed: (listening) => this.#listening(listening),
      failed: (text) => complain(text),
    });
    this.player = new Player($("play-question"), () => this.#drawQuestion());
    this.player.load(null);
    this.large = new Large(about, { similar: (answer) => this.like(answer), closed: (index) => this.#focus(index) });
    takeFiles($("choose"), about.limits.bytes, (file) => this.ask(file));

    $("back-to-question").addEventListener("click", () => this.#back());
    $("details").addEventListener("change", () => this.#showDetails());
    $("narrow").addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || !$("narrow").open) return;
      $("narrow").open = false;
      $("filters").focus();
    });
    document.addEventListener("pointerdown", ({ target }) => {
      // with answers it lies over them
      if ($("search").classList.contains("answered") && !$("narrow").contains(target)) $("narrow").open = false;
    });
    $("narrow-form").addEventListener("submit", (event) => {
      event.preventDefault();
      this.#narrowed();
    });
    $("narrow-form").addEventListener("reset", () => setTimeout(() => this.#narrowed()));
  }

  /** Ask with a recording or a picture. */
  async ask(blob) {
    const signal = this.#begin();
    const narrowed = this.#isNarrowed();
    this.#drawWaiting();
    const heard = blob instanceof File ? null : this.#hear(blob, signal);
    let view;
    try {
      const answer = await api.search(blob, this.#narrow(), { signal, waiting: busy });
      // a file is decoded here only once the server has found that it is not too much
      const sound = await (heard ?? (answer.kind === "recording" ? decode(blob) : null));
      view = { ...answer, blob, sound, narrowed };
    } catch (error) {
      this.#fault(error, signal, () => this.ask(blob));
      return;
    }
    if (signal.aborted) return;
    this.#forget();
    this.#views = [view];
    this.#drawView(view);
    this.#announce(view);
  }

  /** Show what looks like an answer. */
  async like(answer) {
    const signal = this.#begin();
    try {
      const { answers } = await api.similar(answer.id, this.#narrow().top, { signal });
      if (signal.aborted) return;
      const view = { answers, kind: "similar", title: answer.name, fits: null };
      this.#views.push(view);
      this.#drawView(view);
      this.#announce(view);
      scrollTo({ top: 0 });
      this.#focus(0);
    } catch (error) {
      this.#fault(error, signal, () => this.like(answer));
    }
  }

  /** Decode what was said, and draw it while the answers are awaited. */
  async #hear(blob, signal) {
    const sound = await decode(blob);
    if (sound && !signal.aborted) this.speak.wave.still(sound);
    return sound;
  }

  #begin() {
    this.#running.abort();
    this.#running = new AbortController();
    this.player.pause();
    hush();
    return this.#running.signal;
  }

  #fault(error, signal, again) {
    if (signal.aborted) return; // another question came
    if (!(error instanceof api.ApiError)) throw error;
    const last = this.#views.at(-1);
    if (last) {
      this.#drawView(last);
    } else {
      show(false, $("results"));
      $("search").classList.remove("answered");
      this.speak.wave.rest();
    }
    complain(error.message, error.status === 0 || error.status >= 500 || error.status === 429 ? again : null);
  }

  #listening(listening) {
    if (!listening) {
      this.#drawQuestion(); // it stays, if what was said is not asked
      return;
    }
    hush();
    this.player.pause();
    show(false, $("asked"), $("play-question"));
  }

  #forget() {
    for (const view of this.#views) {
      view.sound?.release();
      if (view.address) URL.revokeObjectURL(view.address);
    }
  }

  #back() {
    this.#begin();
    this.#views.pop();
    const view = this.#views.at(-1);
    this.#drawView(view);
    this.#announce(view);
    this.#focus(0);
  }

  #narrow() {
    const { valueAsNumber } = $("top");
    const top = Number.isInteger(valueAsNumber) ? valueAsNumber : this.about.top;
    return { top, path: $("path").value.trim(), since: $("since").value, until: $("until").value };
  }

  #isNarrowed() {
    const { path, since, until } = this.#narrow();
    return Boolean(path || since || until);
  }

  #narrowed() {
    $("narrow").open = false;
    $("filters").textContent = this.#isNarrowed() ? "Filters on" : "Filters";
    const question = this.#views[0];
    if (question) this.ask(question.blob);
  }

  #drawWaiting() {
    $("search").classList.add("answered");
    $("results").setAttribute("aria-busy", "true");
    $("results-title").textContent = "Searching";
    $("answers").classList.add("led");
    $("answers").replaceChildren(...this.#skeletons());
    show(true, $("results"));
    show(false, $("asked"), $("play-question"), $("back-to-question"), $("banner"), $("empty"), $("timings"));
  }

  #drawView(view) {
    const fits = view.fits !== false;
    $("results").removeAttribute("aria-busy");
    show(this.#views.length > 1, $("back-to-question"));
    show(!fits, $("banner"));
    show(false, $("empty"));
    $("answers").classList.toggle("led", fits); // the best answer is shown larger
    this.#drawTitle(view);
    this.#drawQuestion();
    this.#drawTimings(view);
    $("answers").replaceChildren(...view.answers.map((answer, index) => this.#card(answer, index)));
    if (view.answers.length === 0) {
      $("empty").textContent = view.narrowed
        ? `No ${this.noun} passes the filters.`
        : `There is no ${this.noun} to show.`;
      show(true, $("empty"));
    }
    this.#showDetails();
  }

  #drawTitle(view) {
    const number = count(view.answers.length, this.noun);
    const title = $("results-title");
    if (view.kind === "similar") title.replaceChildren("Like ", make("bdi", { textContent: view.title }));
    else title.textContent = number;
  }

  /** Draw the question that the answers came from: the shape of what was said, or the picture. */
  #drawQuestion() {
    const question = this.#views[0];
    if (!question) return;
    const { sound } = question;
    if (this.player.sound !== sound) this.player.load(sound);
    show(Boolean(sound), $("play-question"));
    if (sound) {
      const { currentTime } = sound.audio;
      this.speak.wave.still(sound, this.player.playing ? currentTime / sound.duration : null);
      this.speak.clock.textContent = clock(Math.round(sound.duration));
    } else {
      this.speak.wave.rest();
      this.speak.clock.textContent = "";
    }
    if (question.kind === "picture" && !question.address) {
      question.address = URL.createObjectURL(question.blob);
      $("asked").src = question.address;
    }
    show(question.kind === "picture", $("asked"));
  }

  #drawTimings(view) {
    const parts = [];
    if (view.heard) parts.push(`heard ${view.heard[0].toFixed(1)} to ${view.heard[1].toFixed(1)} s`);
    if (typeof view.chance === "number") {
      parts.push(`mismatched ${this.noun}s score as high with probability ${view.chance.toPrecision(2)}`);
    }
    for (const [stage, seconds] of Object.entries(view.timings ?? {})) {
      parts.push(`${stage} ${Math.round(seconds * 1000)} ms`);
    }
    $("timings").textContent = parts.join(" \u00b7 ");
  }

  #card(answer, index) {
    const image = make("img", { alt: "", decoding: "async", onerror: () => missing(image) });
    const button = make(
      "button",
      { type: "button", className: "card", title: answer.path, aria: { haspopup: "dialog" } },
      make("span", { className: "frame" }, image),
      make(
        "span",
        { className: "caption" },
        make("span", { className: "rank", textContent: answer.rank }),
        make("bdi", { className: "name", textContent: answer.name }),
      ),
    );
    button.addEventListener("click", () => {
      this.player.pause();
      this.large.open(this.#views.at(-1), index, this.#views[0]);
    });
    this.#fill(image, answer.id);
    return make("li", {}, button, scores(answer));
  }

  async #fill(image, id) {
    try {
      if (!this.#thumbnails.has(id)) {
        if (this.#thumbnails.size > 500) this.#dropThumbnails();
        this.#thumbnails.set(id, URL.createObjectURL(await api.thumbnail(id)));
      }
      image.src = this.#thumbnails.get(id);
    } catch {
      missing(image);
    }
  }

  #dropThumbnails() {
    for (const address of this.#thumbnails.values()) URL.revokeObjectURL(address);
    this.#thumbnails.clear();
  }

  #skeletons() {
    const many = Math.min(this.#narrow().top, this.about.items, 24);
    return Array.from({ length: many }, () =>
      make("li", { className: "skeleton", aria: { hidden: "true" } }, make("span", { className: "frame" })),
    );
  }

  #showDetails() {
    const visible = $("details").checked;
    $("answers").classList.toggle("with-scores", visible);
    show(visible && $("timings").textContent !== "", $("timings"));
  }

  #announce(view) {
    const [best] = view.answers;
    const number = count(view.answers.length, this.noun);
    announce(`${view.fits === false ? `${MISFIT} ` : ""}${number}.${best ? ` Best: ${best.name}.` : ""}`);
  }

  #focus(index) {
    $("answers").children[index]?.querySelector("button")?.focus({ preventScroll: index === 0 });
  }
}

/** A picture that cannot be shown: its name stands for it. */
function missing(image) {
  image.removeAttribute("src");
  image.parentElement.classList.add("missing");
}

/** The scores of an answer, as a list. */
function scores(answer) {
  const row = (name, value) => make("div", {}, make("dt", { textContent: name }), make("dd", { textContent: value }));
  const rows = [row("coarse", signed(answer.coarse, 3))];
  if (answer.fine !== null) rows.push(row("fine", signed(answer.fine, 2, true)));
  return make("dl", { className: "scores" }, ...rows);
}
