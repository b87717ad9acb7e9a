// The stream of changes of one service, which reconnects.

import { events } from "/ui/api.js";
import { changeLines, hostsByName } from "/ui/service.js";

const RECONNECT = 2_000; // ms until a stream that ended is opened again
const KEPT = 100; // changes

/** `changes`: the newest first; `problem`: why there is no stream. Calls `onEvent` with each event and its lines. */
export class Stream {
  constructor({ namespace, group, name }, onEvent) {
    this.changes = [];
    this.problem = "";
    this._query = { namespace, service: `${group}@@${name}`, lastEventId: "" };
    this._hosts = new Map();
    this._number = 0;
    this._onEvent = onEvent;
    this._abort = new AbortController();
    this._listen();
  }

  close() {
    this._abort.abort();
  }

  async _listen() {
    const { signal } = this._abort;
    while (!signal.aborted) {
      try {
        for await (const event of events(this._query, signal)) this._keep(event);
      } catch (problem) {
        if (signal.aborted) return;
        this.problem = problem.status ? problem.message : ""; // if the proxy does not answer, the page says so
      }
      await new Promise(resume => setTimeout(resume, RECONNECT));
    }
  }

  _keep(event) {
    const lines = changeLines(event, this._hosts);
    const time = new Date().toLocaleTimeString("en-GB");
    this._query.lastEventId = event.id ?? this._query.lastEventId;
    if (event.data.hosts) this._hosts = hostsByName(event.data.hosts);
    this.changes = [{ number: ++this._number, time, lines }, ...this.changes].slice(0, KEPT);
    this.problem = "";
    this._onEvent(event, lines);
  }
}
