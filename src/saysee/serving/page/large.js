// One picture, large: the way to the next and the previous, what is known of it, and where the model looked.

import * as api from "./api.js";
import { Attention } from "./attention.js";
import { $, announce, fit, make, show, signed } from "./dom.js";

export class Large {
  #view = null;
  #index = 0;
  #question = null;
  #running = new AbortController();
  #address = null;

  /**
   * @param {object} about what /api/about said.
   * @param {object} options
   * @param {function(object)} options.similar called with the answer that more are wanted like.
   * @param {function(number)} options.closed called with the place of the answer that was shown last.
   */
  constructor(about, { similar, closed }) {
    Object.assign(this, { about, similar, closed, dialog: $("large"), attention: new Attention() });
    $("large-close").addEventListener("click", () => this.dialog.close());
    $("previous").addEventListener("click", () => this.#go(-1));
    $("next").addEventListener("click", () => this.#go(1));
    $("similar").addEventListener("click", () => {
      const answer = this.#answer;
      this.dialog.close();
      this.similar(answer);
    });
    $("look").addEventListener("click", () => this.#look(!this.attention.open));
    this.dialog.addEventListener("click", (event) => {
      if (event.target === this.dialog) this.dialog.close(); // beside the dialog's content
    });
    this.dialog.addEventListener("keydown", (event) => {
      if (event.target.closest("input[type=range]")) return; // there the arrows move the moment
      if (event.key === "ArrowRight") this.#go(1);
      if (event.key === "ArrowLeft") this.#go(-1);
    });
    this.dialog.addEventListener("close", () => {
      this.#running.abort();
      this.attention.hide();
      this.#look(false);
      this.closed(this.#index);
    });
  }

  /** Show the answer at a place of a view; `question` is the view that the spoken question came with. */
  open(view, index, question) {
    this.#view = view;
    this.#question = view === question && question.kind === "recording" ? question : null;
    show(this.about.attention && this.#question !== null, $("look"));
    this.#show(index);
    this.dialog.showModal();
  }

  get #answer() {
    return this.#view.answers[this.#index];
  }

  #go(by) {
    const index = this.#index + by;
    if (index < 0 || index >= this.#view.answers.length) return;
    this.#show(index);
    announce(`${this.#answer.rank}: ${this.#answer.name}`, $("large-status"));
  }

  #show(index) {
    this.#running.abort();
    this.#running = new AbortController();
    this.#index = index;
    const answer = this.#answer;
    $("large-fault").textContent = "";
    $("large-name").textContent = answer.name;
    $("large-rank").textContent = `${answer.rank} of ${this.#view.answers.length}`;
    $("previous").disabled = index === 0;
    $("next").disabled = index === this.#view.answers.length - 1;
    $("large-facts").replaceChildren(...facts(answer));
    this.attention.clear();
    this.#load(answer, this.#running.signal);
    if (this.attention.open) this.#look(true);
  }

  async #load(answer, signal) {
    const image = $("large-picture");
    image.classList.add("coming");
    image.parentElement.classList.remove("missing");
    image.alt = answer.name;
    try {
      const address = URL.createObjectURL(await api.picture(answer.id, { signal }));
      if (this.#address) URL.revokeObjectURL(this.#address);
      this.#address = address;
      if (signal.aborted) return;
      await fit(image, address);
    } catch (error) {
      if (signal.aborted) return;
      image.removeAttribute("src");
      image.parentElement.classList.add("missing");
      $("large-fault").textContent = error instanceof api.ApiError ? error.message : "The picture cannot be shown.";
    }
    image.classList.remove("coming");
  }

  async #look(wanted) {
    $("look").setAttribute("aria-expanded", String(wanted));
    if (!wanted) {
      this.attention.hide();
      return;
    }
    const { signal } = this.#running;
    $("look").setAttribute("aria-busy", "true");
    try {
      const heat = await api.attention(this.#answer.id, this.#question.blob, { signal });
      if (!signal.aborted) this.attention.show(heat, this.#question.sound);
    } catch (error) {
      if (signal.aborted) return;
      if (!(error instanceof api.ApiError)) throw error;
      $("look").setAttribute("aria-expanded", "false");
      $("large-fault").textContent = error.message;
    } finally {
      if (!signal.aborted) $("look").removeAttribute("aria-busy");
    }
  }
}

function facts(answer) {
  const rows = [
    ["path", answer.path],
    ["taken", answer.taken && new Date(answer.taken).toLocaleDateString(undefined, { dateStyle: "medium" })],
    ["coarse", signed(answer.coarse, 3)],
    ["fine", answer.fine === null ? null : signed(answer.fine, 2, true)],
  ];
  return rows
    .filter(([, value]) => value)
    .map(([name, value]) =>
      make("div", {}, make("dt", { textContent: name }), make("dd", {}, make("bdi", { textContent: value }))),
    );
}
