// Keyboard shortcuts, and one answer for two clicks.  Everything works without this file.
"use strict";
const typing = (element) => element.matches("textarea, select, input:not([type=radio]):not([type=checkbox])");

document.addEventListener("keydown", (event) => {
  if (event.repeat || event.altKey || event.metaKey) return;
  if (event.key === "Enter" && event.ctrlKey) document.querySelector("[data-save]")?.click();
  if (event.ctrlKey || typing(event.target)) return;
  const key = { 1: "a", 2: "b", 3: "t", 4: "x" }[event.key] ?? event.key.toLowerCase();
  const button = document.querySelector(`button[data-key="${CSS.escape(key)}"]:not(:disabled)`);
  if (button) {
    event.preventDefault();
    button.click();
  }
});

document.addEventListener("submit", (event) => {
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = "yes";
}, true);

document.addEventListener("htmx:error", () => {
  for (const form of document.querySelectorAll("form[data-sent]")) delete form.dataset.sent;
  for (const note of document.querySelectorAll("#offline")) note.hidden = false;
});

const showKeys = () => document.querySelectorAll(".keys").forEach((element) => (element.hidden = false));
showKeys();
document.addEventListener("htmx:after:swap", showKeys);
