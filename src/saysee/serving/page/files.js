// Recordings and pictures from disk: chosen, or dropped anywhere on the page.

import { $, complain, show } from "./dom.js";

const megabytes = (bytes) => `${(bytes / 1_000_000).toFixed(1)} MB`;

/**
 * Hand over every file that is chosen or dropped.
 * @param {HTMLButtonElement} button opens the chooser.
 * @param {number} most bytes that the server takes; larger files are refused here, before they are sent.
 * @param {function(File)} taken
 */
export function takeFiles(button, most, taken) {
  const input = $("file");
  const take = (file) => {
    if (file.size > most) {
      complain(`This file has ${megabytes(file.size)}; the server takes at most ${megabytes(most)}.`);
    } else if (file.size === 0) {
      complain("This file is empty.");
    } else {
      taken(file);
    }
  };
  button.addEventListener("click", () => input.click());
  input.addEventListener("change", () => {
    if (input.files.length) take(input.files[0]);
    input.value = ""; // the same file may be chosen again
  });

  const carriesFiles = (event) => event.dataTransfer?.types.includes("Files");
  const mark = (visible) => show(visible, $("dropping"));
  for (const name of ["dragenter", "dragover"]) {
    window.addEventListener(name, (event) => {
      if (!carriesFiles(event)) return;
      event.preventDefault();
      mark(true);
    });
  }
  window.addEventListener("dragleave", (event) => {
    if (event.relatedTarget === null) mark(false); // out of the window, not from one element to the next
  });
  window.addEventListener("drop", (event) => {
    if (!carriesFiles(event)) return;
    event.preventDefault(); // the browser would open the file in place of the page
    mark(false);
    const file = event.dataTransfer.files[0];
    if (file && !document.querySelector("dialog[open]")) take(file);
  });
}
