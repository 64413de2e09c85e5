// Before anything is painted: the colours that were chosen here, if any.
"use strict";
try {
  const chosen = localStorage.getItem("sentstream-theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
} catch {
  // storage may be forbidden; then it is as the system has it
}
