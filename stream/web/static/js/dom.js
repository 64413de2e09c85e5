// The few words of DOM that the page is made with. Text is always text: nothing here parses markup.

export const byId = (id) => document.getElementById(id);

export function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else element.setAttribute(name, value === true ? "" : value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

// Writing the same text again costs a layout, so don't.
export function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

export function label(element, text) {
  if (element.getAttribute("aria-label") !== text) element.setAttribute("aria-label", text);
}

// A table that can be scrolled sideways by keyboard, too.
export function table(caption, columns, rows) {
  return make("div", { class: "scroll", role: "region", "aria-label": caption, tabindex: "0" },
    make("table", {},
      make("caption", { class: "unseen" }, caption),
      make("thead", {}, make("tr", {}, ...columns.map((column) => make("th", { scope: "col" }, column)))),
      make("tbody", {}, ...rows)));
}

export const verdictMark = (verdict) => make("span", { class: "verdict", "data-verdict": verdict }, verdict.replace("_", " "));
