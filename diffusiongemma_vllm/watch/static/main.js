import * as chat from "./chat.js";
import { find } from "./dom.js";
import * as infill from "./infill.js";
import * as numbers from "./numbers.js";
import * as settings from "./settings.js";
import { model } from "./stream.js";

const VIEWS = ["chat", "infill", "server"];

function view() {
  const wanted = location.hash.slice(1);
  const shown = VIEWS.includes(wanted) ? wanted : "chat";
  for (const name of VIEWS) find(name).hidden = name !== shown;
  find("settings").hidden = shown === "server";
  document.querySelectorAll("nav a").forEach((link) => {
    if (link.hash === `#${shown}`) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  });
}

async function connect() {
  try {
    const name = await model();
    find("model").textContent = name.startsWith("/") ? name.split("/").pop() : name;
    find("model").title = name;
    find("model").classList.remove("lost");
  } catch (error) {
    find("model").textContent = error.message;
    find("model").classList.add("lost");
    setTimeout(connect, 3000);
  }
}

addEventListener("hashchange", view);
find("settings").open = matchMedia("(min-width: 64rem)").matches;
settings.start();
chat.start();
infill.start();
view();
numbers.start();
connect();
