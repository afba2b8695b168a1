// Starts the page: the token, what the server is for, and one of the two modes.

import * as api from "./api.js";
import { $, complain, hush, show } from "./dom.js";
import { startRecording } from "./record.js";
import { startSearch } from "./search.js";

/** Ask the person for the token; `refused` says that the one before was wrong. */
function askForToken(refused) {
  const form = $("token-form");
  hush();
  document.querySelector("dialog[open]")?.close(); // the form would lie behind it
  $("token-fault").textContent = refused ? "That is not the token of this server." : "";
  $("token").value = "";
  show(true, form);
  $("token").focus();
  return new Promise((resolve) => {
    form.onsubmit = (event) => {
      event.preventDefault();
      show(false, form);
      resolve($("token").value.trim());
    };
  });
}

async function start() {
  try {
    const about = await api.about();
    if (about.mode === "record") startRecording(about);
    else startSearch(about);
  } catch (error) {
    if (!(error instanceof api.ApiError)) throw error;
    complain(error.message, start);
  }
}

api.takeTokenFromAddress();
api.tokenFrom(askForToken);
start();
