// Drives the Node SDK (nacos 2): the protocol is in ../__init__.py.
'use strict';

const readline = require('readline');
const { NacosConfigClient, NacosNamingClient } = require('nacos');

const quiet = { debug() {}, info() {}, log() {}, warn: note, error: note };
const clients = new Map();
const listeners = new Map();
const registered = new Map();

function note(...what) {
  console.error(...what);
}

function say(line) {
  process.stdout.write(`${JSON.stringify(line)}\n`);
}

function shown(hosts) {
  return hosts.map(host => ({
    id: host.instanceId,
    ip: host.ip,
    port: host.port,
    cluster: host.clusterName,
    service: host.serviceName,
    weight: host.weight,
    healthy: host.healthy,
    enabled: host.enabled,
    metadata: host.metadata,
  }));
}

async function connect({ server, namespace, username, password }) {
  const naming = new NacosNamingClient({ logger: quiet, serverList: server, namespace, username, password });
  naming.on('error', note);
  await naming.ready();
  const configOf = () => {
    const account = { namespace, username, password };
    const config = new NacosConfigClient({ serverAddr: server, ...account, requestTimeout: 6000, cacheDir: './cache' });
    config.on('error', note);
    return config;
  };
  let config;
  return { naming, get config() { return (config = config || configOf()); }, get used() { return config; } };
}

async function perform(asked) {
  if (asked.do === 'connect') {
    clients.set(asked.client, await connect(asked));
    return true;
  }
  const client = clients.get(asked.client);
  const { service, group = 'DEFAULT_GROUP', clusters = [], dataId } = asked;
  const instance = {
    ip: asked.ip,
    port: asked.port,
    clusterName: asked.cluster,
    weight: asked.weight,
    ephemeral: asked.ephemeral,
    metadata: asked.metadata,
  };
  const where = { serviceName: service, groupName: group, clusters: clusters.join(',') };
  const key = JSON.stringify([asked.client, service, group, asked.ip, asked.port]);
  switch (asked.do) {
    case 'register':
      await client.naming.registerInstance(service, instance, group);
      registered.set(key, () => client.naming.deregisterInstance(service, instance, group));
      return true;
    case 'deregister':
      await client.naming.deregisterInstance(service, instance, group);
      registered.delete(key);
      return true;
    case 'instances':
      return shown(await client.naming.getAllInstances(service, group, clusters.join(','), false));
    case 'select':
      return shown(await client.naming.selectInstances(service, group, clusters.join(','), true, false));
    case 'status':
      return await client.naming.getServerStatus();
    case 'subscribe': {
      const listener = hosts => say({ event: 'naming', name: asked.name, hosts: shown(hosts) });
      listeners.set(asked.name, listener);
      client.naming.subscribe(where, listener);
      return true;
    }
    case 'unsubscribe':
      client.naming.unSubscribe(where, listeners.get(asked.name));
      return true;
    case 'publish':
      return await client.config.publishSingle(dataId, group, asked.content);
    case 'config':
      return await client.config.getConfig(dataId, group);
    case 'remove':
      return await client.config.remove(dataId, group);
    case 'listen':
      client.config.subscribe({ dataId, group }, content => say({ event: 'config', name: asked.name, content }));
      return true;
    case 'close':
      await client.naming.close();
      if (client.used) client.used.close();
      return true;
    default:
      throw new Error('unknown');
  }
}

process.on('unhandledRejection', note);
const lines = readline.createInterface({ input: process.stdin });
lines.on('line', line => {
  const asked = JSON.parse(line);
  perform(asked).then(
    ok => say({ id: asked.id, ok: ok === undefined ? null : ok }),
    error => say({ id: asked.id, error: String(error) })
  );
});
lines.on('close', () => process.exit(0));
process.on('SIGTERM', async () => {
  await Promise.allSettled([...registered.values()].map(deregister => deregister()));
  process.exit(0);
});
say({ event: 'ready' });
