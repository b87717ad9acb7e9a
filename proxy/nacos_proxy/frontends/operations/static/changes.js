// What somebody may do about an instance: the actions, the dialog that asks first, and the call.

import { call } from "/ui/api.js";
import { el } from "/ui/dom.js";
import { addressOf } from "/ui/parts.js";
import { hostsByName } from "/ui/service.js";

const BEGUN = 1_500; // ms after which a drain counts as begun: its answer comes only at its end
const DISABLED = "nacos-proxy disabled";

const inTraffic = host => !host.drain && !host.maintenance;
const PATCH = body => ({ method: "PATCH", body });

/** `offered`: for which hosts; `field`: of the dialog, if it has one; `call`: from its value to the call. */
const ACTIONS = {
  disable: {
    label: "Disable",
    offered: host => host.enabled && inTraffic(host),
    text: "It gets no traffic until somebody enables it. Nacos leaves it out of its lists then: this tab remembers it.",
    call: () => PATCH({ enabled: false }),
  },
  enable: {
    label: "Enable",
    offered: host => !host.enabled && inTraffic(host),
    text: "It gets traffic again.",
    call: () => PATCH({ enabled: true }),
  },
  weight: {
    label: "Weight",
    offered: host => !host.drain,
    text: "Its share of the traffic, beside the weights of the others. 0: none.",
    field: { label: "Weight, 0 to 10000", type: "number", min: 0, max: 10_000, step: "any", required: true },
    initial: host => host.weight,
    call: weight => PATCH({ weight: Number(weight) }),
  },
  drain: {
    label: "Drain",
    offered: host => host.origin !== "elsewhere" && inTraffic(host),
    text: "Takes it out of traffic now and deregisters it after the wait, even if this page is closed.",
    field: { label: "Wait, at most 5m", type: "text", required: true },
    initial: () => "20s",
    call: wait => ({ method: "POST", below: "/drain", query: { wait } }),
    slow: true,
  },
  undrain: {
    label: "Cancel the drain",
    offered: host => host.drain && host.drain.state !== "drained",
    text: "Brings it back as it was before.",
    call: () => ({ method: "DELETE", below: "/drain", query: { cluster: "" } }),
  },
  maintain: {
    label: "Maintenance",
    offered: host => ["check", "file"].includes(host.origin) && inTraffic(host),
    text: "Keeps it out of traffic until somebody ends that, whatever its checks say.",
    field: { label: "Reason", type: "text", maxlength: 200 },
    initial: () => "",
    call: reason => ({ method: "PUT", below: "/maintenance", body: { reason } }),
  },
  restore: {
    label: "End the maintenance",
    offered: host => host.maintenance,
    text: "Brings it back into traffic.",
    call: () => ({ method: "DELETE", below: "/maintenance" }),
  },
};

/** The names and labels of the actions that a token with this right may do to a host; null: only Nacos knows. */
export function allowedActions(right, host) {
  if (right === "read") return [];
  const offered = Object.entries(ACTIONS).filter(([, action]) => action.offered(host));
  return offered.map(([name, action]) => [name, action.label]);
}

/** Opens the dialog that asks whether to do it. */
export function askFirst(dialog, change, host, service) {
  const { label, text, field, initial } = ACTIONS[change];
  const address = addressOf(host);
  const input = field && { id: "dialog-value", name: "value", autocomplete: "off", ...field, label: null };
  const form = el(
    "form",
    { "data-form": "change", "data-change": change, "data-address": address, "data-cluster": host.clusterName },
    el("h2", { id: "dialog-title" }, `${label}: ${address}`),
    el("p", {}, `${service}, cluster ${host.clusterName}. ${text}`),
    field && el("label", { for: "dialog-value" }, field.label),
    field && el("input", { ...input, value: initial(host) }),
    el("p", { class: "error", role: "alert" }),
    el(
      "div",
      { class: "buttons" },
      el("button", { type: "button", "data-action": "close" }, "Leave it"),
      el("button", { class: "primary" }, label),
    ),
  );
  dialog.replaceChildren(form);
  dialog.showModal();
}

/** Does what the form of the dialog asked for. `tell` gets what became of it. Raises `Problem`. */
export async function change(form, { namespace, group, name }, tell) {
  const { change, address, cluster } = form.dataset;
  const { label, slow, call: callOf } = ACTIONS[change];
  const { below = "", query, ...how } = callOf(form.elements.value?.value);
  const path = ["/api/v1/services", encodeURIComponent(`${group}@@${name}`), "instances", encodeURIComponent(address)];
  const answer = call(path.join("/") + below, { ...how, query: { namespace, cluster, ...query } });
  remember(namespace, slow ? await begun(answer, tell) : await answer);
  tell(`${label}: done for ${address}`);
}

/** The answer, or nothing if it takes long. An error that comes later is told. */
function begun(answer, tell) {
  answer.catch(problem => tell(problem.message));
  return Promise.race([answer, new Promise(done => setTimeout(done, BEGUN))]);
}

// Nacos's lists leave disabled instances out. So this tab remembers those that it disabled, to enable them again.

function remember(namespace, host) {
  const kept = disabled().filter(one => one.instanceId !== host?.instanceId || one.namespace !== namespace);
  if (host?.enabled === false) kept.push({ ...host, namespace, listed: false, origin: "elsewhere" });
  sessionStorage.setItem(DISABLED, JSON.stringify(kept));
}

function disabled() {
  return JSON.parse(sessionStorage.getItem(DISABLED) ?? "[]");
}

/** Those of a service that are not among `hosts`. */
export function disabledHere({ namespace, group, name }, hosts) {
  const listed = hostsByName(hosts);
  const ours = disabled().filter(one => one.namespace === namespace && one.serviceName === `${group}@@${name}`);
  return [...hostsByName(ours)].filter(([key]) => !listed.has(key)).map(([, host]) => host);
}
