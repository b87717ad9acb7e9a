// The page: which view the address names, when the proxy is asked, and what a click does.
// What the views look like is in files of their own. The address holds the whole state behind its `#`, to be shared.

import { Problem, call, takeTokenFromAddress, token } from "/ui/api.js";
import { allowedActions, askFirst, change, disabledHere } from "/ui/changes.js";
import { el, show } from "/ui/dom.js";
import * as frame from "/ui/frame.js";
import { nacos } from "/ui/nacos.js";
import { PAGE_SIZE, addressOf, count, link, pageOf } from "/ui/parts.js";
import { proxy } from "/ui/proxy.js";
import { service } from "/ui/service.js";
import { services } from "/ui/services.js";
import { Stream } from "/ui/stream.js";

const TABS = ["services", "nacos", "proxy"];
const PERIOD = 3_000; // ms between two questions, while the page is visible
const FIRST_PERIOD = 1_000; // ms until the second one, from which on reads a second are known
const MAX_PERIOD = 15_000; // ms, for a proxy that takes long to answer
const SHARE = 10; // the page waits so many times as long as an answer took
const SOON = 300; // ms in which several changes are one question
const TYPING = 250; // ms without a key after which a search begins
const MAX_SAMPLES = 6; // of the counters; reads a second are their mean over that many periods

const at = id => document.getElementById(id);

let route; // what the address names: {view, path, query}
let status = null; // the last answer of /status
let answeredAt = 0; // when it came, in ms
let more = null; // what the view needs beyond the status
let lost = ""; // why the proxy does not answer, '' if it does
let refused = ""; // why the token was refused, '' if it was not
let samples = [];
let round = 0; // of questions; the answer to an earlier one is dropped
let timer = 0;
let soon = 0; // the timer between an event and its question
let typing = 0; // the timer between a key and the search
let stream = null; // of the service on the page
let followed = ""; // which one that is

// the address

function readRoute() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const parts = path.split("/").filter(Boolean).map(decoded);
  if (!TABS.includes(parts[0])) parts.splice(0, parts.length, "services");
  return {
    view: parts[0] === "services" && parts.length === 4 ? "service" : parts[0],
    path: parts,
    query: Object.fromEntries(new URLSearchParams(query)),
  };
}

function keyOnPage() {
  const [, namespace, group, name] = route.path;
  return { namespace, group, name };
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text;
  }
}

function onNewAddress() {
  const before = route;
  route = readRoute();
  if (link(route.path) !== link(before.path)) {
    more = null;
    draw();
    window.scrollTo(0, 0);
    (at("view").querySelector("h1") ?? at("main")).focus();
  }
  refresh({ announced: route.view === "services" });
}

/** Changes the query of the address without a step of the browser's history. */
function setQuery(changes) {
  history.replaceState(null, "", link(route.path, { ...route.query, page: "", ...changes }));
  onNewAddress();
}

// the views: what each asks for, and how it is drawn

const VIEWS = {
  services: {
    query: ({ search, namespace, group, condition, sort, page }) => ({
      search,
      namespace,
      group,
      condition,
      sort,
      limit: PAGE_SIZE,
      offset: PAGE_SIZE * pageOf({ page }),
    }),
    draw: () => services(route, status, readRate()),
    title: () => "Services",
  },
  service: {
    load: async () => {
      const key = keyOnPage();
      follow(key);
      const name = encodeURIComponent(`${key.group}@@${key.name}`);
      const known = await call(`/status/${name}`, { query: { namespace: key.namespace } });
      return { ...known, hosts: [...known.hosts, ...disabledHere(key, known.hosts)] };
    },
    draw: () =>
      more &&
      service(
        route,
        { ...status, tokenNeeded: token.get() !== "" },
        more,
        stream?.changes ?? [],
        stream?.problem,
        host => allowedActions(status.right, host),
      ),
    title: () => route.path[3],
  },
  nacos: {
    load: async () => {
      const { namespace, group } = route.query;
      const asked = link(route.path, route.query);
      if (more?.asked === asked) return more; // each question goes to Nacos: only when somebody asks
      const query = { namespace, group, page: 1 + pageOf(route.query), size: PAGE_SIZE };
      try {
        return { asked, listed: await call("/api/v1/services", { query }) };
      } catch (problem) {
        if (problem.status === 0) throw problem;
        return { asked, detail: problem.message };
      }
    },
    draw: () => nacos(route, status, more?.listed, more?.detail),
    title: () => "In Nacos",
  },
  proxy: { draw: () => proxy(status), title: () => "This proxy" },
};

// asking

/** Asks the proxy now, draws, and asks again after a while. `announced`: say how many services were found. */
async function refresh({ announced = false } = {}) {
  const mine = ++round;
  const began = Date.now();
  clearTimeout(timer);
  const view = VIEWS[route.view];
  if (route.view !== "service") follow(null);
  try {
    const answer = await call("/status", { query: view.query?.(route.query) ?? { limit: 0 } });
    if (mine !== round) return;
    const loaded = await view.load?.();
    if (mine !== round) return;
    take(answer, loaded ?? null);
    if (announced) announce(`${count(status.servicesFound, "service")} found`);
  } catch (problem) {
    if (mine === round) onProblem(problem);
  } finally {
    const period = Math.min(MAX_PERIOD, Math.max(PERIOD, SHARE * (Date.now() - began)));
    if (mine === round && !document.hidden && !refused)
      timer = setTimeout(refresh, samples.length === 1 ? FIRST_PERIOD : period);
  }
}

/** Draws an answer. One that cannot be drawn changes nothing. */
function take(answer, loaded) {
  const before = [status, more, lost, refused, answeredAt];
  try {
    [status, more, lost, refused, answeredAt] = [answer, loaded, "", "", Date.now()];
    keepSample(answer);
    draw();
  } catch (error) {
    [status, more, lost, refused, answeredAt] = before;
    throw error;
  }
}

function onProblem(problem) {
  if (!(problem instanceof Problem)) {
    const said = lost;
    lost = `This page cannot show what the proxy answers: ${problem.message}`;
    if (lost !== said) console.error(problem);
    drawFrame();
    return;
  }
  if (problem.status === 0) lost = `This proxy does not answer: ${problem.message}`;
  else if (problem.status >= 500) lost = `This proxy cannot say how it is: ${problem.message}`;
  else if (problem.status === 401 || problem.status === 403) {
    refused = token.get() ? problem.message : " ";
    follow(null);
  } else {
    lost = "";
    drawFrame();
    show(at("view"), frame.problem("This cannot be shown", problem.message));
    return;
  }
  draw();
}

function keepSample({ uptimeSeconds: time, summary: { reads, hits } }) {
  if (samples.length && samples.at(-1).time >= time) samples = []; // the proxy was started again
  samples = [...samples, { time, reads, hits }].slice(-MAX_SAMPLES);
}

function readRate() {
  const [first, last] = [samples[0], samples.at(-1)];
  if (samples.length < 2) return null;
  const reads = last.reads - first.reads;
  return { reads: reads / (last.time - first.time), hits: reads ? (last.hits - first.hits) / reads : null };
}

// drawing

/** What is around the view. It can be drawn whatever the proxy answers. */
function drawFrame() {
  const host = status?.host ?? location.hostname;
  document.title = [VIEWS[route.view].title(), host, "nacos-proxy"].filter(Boolean).join(" · ");
  document.body.classList.toggle("lost", lost !== "");
  show(at("host"), host);
  show(at("tabs"), frame.tabs(route));
  at("forget").hidden = token.get() === "";
  const known = !refused && (status || lost);
  show(at("health"), known && frame.health(status, lost, (Date.now() - answeredAt) / 1000));
  if (!refused) announceHealth();
}

function draw() {
  drawFrame();
  if (refused) {
    show(at("view"), frame.tokenForm(refused.trim()));
    return;
  }
  if (!status) return;
  show(at("footer"), frame.footer(status, token.get() === ""));
  const wanted = VIEWS[route.view].draw();
  if (wanted) show(at("view"), wanted);
  else
    show(
      at("view"),
      el("h1", { tabindex: -1 }, VIEWS[route.view].title()),
      el("p", { class: "muted" }, "Asking the proxy…"),
    );
  fillForm();
}

/** The fields of a form follow the address, except the one that somebody is writing in. */
function fillForm() {
  if (typing) return; // the address follows them in a moment
  for (const field of at("view").querySelectorAll(".filters [name]")) {
    if (field !== document.activeElement) field.value = route.query[field.name] ?? "";
  }
}

function announce(text) {
  at("announcer").textContent = text;
}

let toldHealth = "ready";
function announceHealth() {
  const reasons = (status?.warnings ?? []).filter(warning => warning.advice).map(warning => warning.reason);
  const now = lost || [status?.status, ...reasons].join(". ");
  if (now !== toldHealth) announce(now);
  toldHealth = now;
}

// the stream of the service on the page

/** Follows a service, and no other; null: none. */
function follow(key) {
  const wanted = key === null || document.hidden || refused ? "" : link([key.namespace, key.group, key.name]);
  if (wanted === followed) return;
  stream?.close();
  followed = wanted;
  stream = wanted ? new Stream(key, onEvent) : null;
}

function onEvent(event, lines) {
  if (event.event === "change") announce(lines.join(", "));
  soon ||= setTimeout(showChange, SOON);
}

/** Asks for the service alone: the whole status costs more, and is asked for soon enough. */
async function showChange() {
  soon = 0;
  const mine = round;
  if (route.view !== "service" || !status) return;
  const loaded = await VIEWS.service.load().catch(() => null); // the next whole question says why
  if (!loaded || mine !== round) return;
  more = loaded;
  draw();
}

// changes of an instance

async function changeInstance(form) {
  const button = form.querySelector(".primary");
  button.disabled = true;
  try {
    await change(form, keyOnPage(), announce);
    at("dialog").close();
  } catch (problem) {
    form.querySelector(".error").textContent = problem.message;
    button.disabled = false;
  }
  refresh();
}

// what people do

const CLICKS = {
  skip: (_, event) => {
    event.preventDefault(); // the address holds the view
    at("main").focus();
  },
  copy: async button => {
    const code = button.previousElementSibling;
    getSelection().selectAllChildren(code);
    await navigator.clipboard?.writeText(code.textContent).catch(() => document.execCommand("copy"));
    if (!navigator.clipboard) document.execCommand("copy"); // over plain HTTP from another host
    announce("Copied");
    button.textContent = "Copied";
    setTimeout(() => (button.textContent = "Copy"), 1_500);
  },
  change: ({ dataset: { change, address, cluster } }) => {
    const host = more.hosts.find(host => addressOf(host) === address && host.clusterName === cluster);
    askFirst(at("dialog"), change, host, keyOnPage().name);
  },
  close: () => at("dialog").close(),
  forget: () => {
    token.forget();
    status = null;
    refresh();
  },
};

const SUBMITS = {
  token: form => {
    token.set(form.elements.token.value.trim());
    refused = "";
    show(at("view"), el("p", { class: "muted" }, "Asking the proxy…"));
    refresh();
  },
  filters: () => {},
  nacos: form => {
    more = null; // asks again even for the same group
    setQuery({ namespace: form.elements.namespace.value.trim(), group: form.elements.group.value.trim() });
  },
  change: changeInstance,
};

document.addEventListener("click", event => {
  const target = event.target.closest("[data-action]");
  if (target) CLICKS[target.dataset.action](target, event);
});
document.addEventListener("submit", event => {
  event.preventDefault();
  SUBMITS[event.target.dataset.form](event.target);
});
function onFilter({ type, target: { form, nodeName } }) {
  if (form?.dataset.form !== "filters" || type !== (nodeName === "SELECT" ? "change" : "input")) return;
  clearTimeout(typing);
  typing = setTimeout(
    () => {
      typing = 0;
      setQuery(Object.fromEntries(new FormData(form)));
    },
    type === "input" ? TYPING : 0,
  );
}
document.addEventListener("input", onFilter);
document.addEventListener("change", onFilter);
window.addEventListener("hashchange", onNewAddress);
document.addEventListener("visibilitychange", () => {
  clearTimeout(timer);
  if (document.hidden) follow(null);
  else refresh();
});

takeTokenFromAddress();
route = readRoute();
refresh();
