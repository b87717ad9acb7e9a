// Drives the Java SDK (nacos-client; the pom says which): the protocol is in ../__init__.py.

import com.alibaba.nacos.api.NacosFactory;
import com.alibaba.nacos.api.config.ConfigService;
import com.alibaba.nacos.api.config.listener.AbstractListener;
import com.alibaba.nacos.api.naming.NamingMaintainService;
import com.alibaba.nacos.api.naming.NamingService;
import com.alibaba.nacos.api.naming.listener.EventListener;
import com.alibaba.nacos.api.naming.listener.NamingEvent;
import com.alibaba.nacos.api.naming.pojo.Instance;
import com.alibaba.nacos.api.naming.pojo.ListView;
import com.fasterxml.jackson.databind.JsonNode;
import com.fasterxml.jackson.databind.ObjectMapper;
import java.io.BufferedReader;
import java.io.InputStreamReader;
import java.io.PrintStream;
import java.nio.charset.StandardCharsets;
import java.util.ArrayList;
import java.util.HashMap;
import java.util.LinkedHashMap;
import java.util.List;
import java.util.Map;
import java.util.Properties;
import java.util.concurrent.ConcurrentHashMap;
import java.util.concurrent.ExecutorService;
import java.util.concurrent.Executors;

public class Driver {
    static final ObjectMapper JSON = new ObjectMapper();
    static final PrintStream OUT = new PrintStream(System.out, true, StandardCharsets.UTF_8);
    static final Map<String, Driver> CLIENTS = new ConcurrentHashMap<>();
    static final Map<String, EventListener> LISTENERS = new ConcurrentHashMap<>();

    final Properties properties = new Properties();
    final NamingService naming;
    NamingMaintainService maintain;
    ConfigService config;

    Driver(JsonNode asked) throws Exception {
        properties.put("serverAddr", asked.get("server").asText());
        for (String name : new String[] {"namespace", "username", "password"}) {
            if (asked.has(name)) {
                properties.put(name, asked.get(name).asText());
            }
        }
        naming = NacosFactory.createNamingService(properties);
    }

    synchronized ConfigService config() throws Exception {
        if (config == null) {
            config = NacosFactory.createConfigService(properties);
        }
        return config;
    }

    synchronized NamingMaintainService maintain() throws Exception {
        if (maintain == null) {
            maintain = NacosFactory.createMaintainService(properties);
        }
        return maintain;
    }

    public static void main(String[] arguments) throws Exception {
        System.setOut(System.err);
        ExecutorService workers = Executors.newCachedThreadPool();
        BufferedReader in = new BufferedReader(new InputStreamReader(System.in, StandardCharsets.UTF_8));
        say(Map.of("event", "ready"));
        for (String line = in.readLine(); line != null; line = in.readLine()) {
            JsonNode asked = JSON.readTree(line);
            workers.execute(() -> {
                Map<String, Object> answer = new LinkedHashMap<>();
                answer.put("id", asked.get("id").asInt());
                try {
                    answer.put("ok", perform(asked));
                } catch (Throwable error) {
                    answer.put("error", String.valueOf(error));
                }
                say(answer);
            });
        }
        System.exit(0);
    }

    static void say(Map<String, Object> line) {
        try {
            OUT.println(JSON.writeValueAsString(line));
        } catch (Exception error) {
            error.printStackTrace();
        }
    }

    static Object perform(JsonNode asked) throws Exception {
        String name = asked.get("client").asText();
        if (asked.get("do").asText().equals("connect")) {
            synchronized (CLIENTS) { // the service loader of 3.0 is not safe for threads
                CLIENTS.put(name, new Driver(asked));
            }
            return true;
        }
        Driver client = CLIENTS.get(name);
        String service = asked.path("service").asText();
        String group = asked.path("group").asText("DEFAULT_GROUP");
        List<String> clusters = new ArrayList<>();
        asked.path("clusters").forEach(cluster -> clusters.add(cluster.asText()));
        switch (asked.get("do").asText()) {
            case "register":
                client.naming.registerInstance(service, group, instance(asked));
                return true;
            case "deregister":
                client.naming.deregisterInstance(service, group, instance(asked));
                return true;
            case "batch":
                List<Instance> batch = new ArrayList<>();
                for (JsonNode one : asked.get("instances")) {
                    batch.add(instance(one));
                }
                // 1.4 lacks it.
                NamingService.class
                        .getMethod("batchRegisterInstance", String.class, String.class, List.class)
                        .invoke(client.naming, service, group, batch);
                return true;
            case "update":
                client.maintain().updateInstance(service, group, instance(asked));
                return true;
            case "instances":
                return shown(client.naming.getAllInstances(service, group, clusters, false));
            case "select":
                return shown(client.naming.selectInstances(service, group, clusters, true, false));
            case "one":
                return shown(List.of(client.naming.selectOneHealthyInstance(service, group, clusters, false)));
            case "services":
                ListView<String> page = client.naming.getServicesOfServer(1, asked.get("size").asInt(), group);
                return Map.of("count", page.getCount(), "names", page.getData());
            case "status":
                return client.naming.getServerStatus();
            case "subscribe":
                EventListener listener = event -> {
                    NamingEvent heard = (NamingEvent) event;
                    say(Map.of("event", "naming", "name", asked.get("name").asText(), "hosts", shown(heard.getInstances())));
                };
                LISTENERS.put(asked.get("name").asText(), listener);
                client.naming.subscribe(service, group, clusters, listener);
                return true;
            case "unsubscribe":
                client.naming.unsubscribe(service, group, clusters, LISTENERS.remove(asked.get("name").asText()));
                return true;
            case "publish":
                return client.config().publishConfig(asked.get("dataId").asText(), group, asked.get("content").asText());
            case "config":
                return client.config().getConfig(asked.get("dataId").asText(), group, 5000);
            case "remove":
                return client.config().removeConfig(asked.get("dataId").asText(), group);
            case "listen":
                client.config().addListener(asked.get("dataId").asText(), group, new AbstractListener() {
                    @Override
                    public void receiveConfigInfo(String content) {
                        say(Map.of("event", "config", "name", asked.get("name").asText(), "content", content));
                    }
                });
                return true;
            case "close":
                client.naming.shutDown();
                if (client.config != null) {
                    client.config.shutDown();
                }
                return true;
            default:
                throw new IllegalArgumentException("unknown");
        }
    }

    static Instance instance(JsonNode asked) throws Exception {
        Instance instance = new Instance();
        instance.setIp(asked.get("ip").asText());
        instance.setPort(asked.get("port").asInt());
        instance.setClusterName(asked.path("cluster").asText("DEFAULT"));
        instance.setWeight(asked.path("weight").asDouble(1.0));
        instance.setEphemeral(asked.path("ephemeral").asBoolean(true));
        Map<String, String> metadata = new HashMap<>();
        asked.path("metadata").fields().forEachRemaining(pair -> metadata.put(pair.getKey(), pair.getValue().asText()));
        instance.setMetadata(metadata);
        return instance;
    }

    static List<Map<String, Object>> shown(List<Instance> instances) {
        List<Map<String, Object>> hosts = new ArrayList<>();
        for (Instance instance : instances) {
            Map<String, Object> host = new LinkedHashMap<>();
            host.put("id", instance.getInstanceId());
            host.put("ip", instance.getIp());
            host.put("port", instance.getPort());
            host.put("cluster", instance.getClusterName());
            host.put("service", instance.getServiceName());
            host.put("weight", instance.getWeight());
            host.put("healthy", instance.isHealthy());
            host.put("enabled", instance.isEnabled());
            host.put("metadata", instance.getMetadata());
            hosts.add(host);
        }
        return hosts;
    }
}
