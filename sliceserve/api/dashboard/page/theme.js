// Before the first paint: the theme that was chosen here before.
"use strict";

const THEMES = ["system", "light", "dark"];

function storedTheme() {
  try {
    const theme = localStorage.getItem("sliceserve.theme");
    return THEMES.includes(theme) ? theme : "system";
  } catch {
    // Storage may be forbidden; the choice then lasts as long as the page.
    return "system";
  }
}

function applyTheme(theme) {
  document.documentElement.dataset.theme = theme;
}

applyTheme(storedTheme());

addEventListener("DOMContentLoaded", () => {
  const button = document.getElementById("theme");
  let theme = storedTheme();
  const show = () => (button.textContent = `Theme: ${theme}`);
  button.addEventListener("click", () => {
    theme = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length];
    try {
      localStorage.setItem("sliceserve.theme", theme);
    } catch {}
    applyTheme(theme);
    show();
  });
  show();
});
