// Drives the Go SDK, nacos-sdk-go v1 or v2: the protocol is in ../__init__.py. The build adds /v2 to the imports for v2,
// and v1/ and v2/ hold what differs.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/signal"
	"strconv"
	"sync"
	"syscall"

	"github.com/nacos-group/nacos-sdk-go/clients"
	"github.com/nacos-group/nacos-sdk-go/clients/config_client"
	"github.com/nacos-group/nacos-sdk-go/clients/naming_client"
	"github.com/nacos-group/nacos-sdk-go/common/constant"
	"github.com/nacos-group/nacos-sdk-go/model"
	"github.com/nacos-group/nacos-sdk-go/vo"
)

type request struct {
	ID        int               `json:"id"`
	Do        string            `json:"do"`
	Client    string            `json:"client"`
	Server    string            `json:"server"`
	Namespace string            `json:"namespace"`
	Username  string            `json:"username"`
	Password  string            `json:"password"`
	Service   string            `json:"service"`
	Group     string            `json:"group"`
	Clusters  []string          `json:"clusters"`
	IP        string            `json:"ip"`
	Port      uint64            `json:"port"`
	Cluster   string            `json:"cluster"`
	Weight    float64           `json:"weight"`
	Ephemeral *bool             `json:"ephemeral"`
	Metadata  map[string]string `json:"metadata"`
	Size      uint32            `json:"size"`
	Name      string            `json:"name"`
	DataID    string            `json:"dataId"`
	Content   string            `json:"content"`
	Instances []request         `json:"instances"`
}

type host struct {
	ID       string            `json:"id"`
	IP       string            `json:"ip"`
	Port     uint64            `json:"port"`
	Cluster  string            `json:"cluster"`
	Service  string            `json:"service"`
	Weight   float64           `json:"weight"`
	Healthy  bool              `json:"healthy"`
	Enabled  bool              `json:"enabled"`
	Metadata map[string]string `json:"metadata"`
}

type client struct {
	param  vo.NacosClientParam
	naming naming_client.INamingClient
	once   sync.Once
	config config_client.IConfigClient
}

var (
	output        sync.Mutex
	connections   sync.Map
	subscriptions sync.Map
	registered    sync.Map
)

func say(line map[string]interface{}) {
	text, _ := json.Marshal(line)
	output.Lock()
	defer output.Unlock()
	fmt.Println(string(text))
}

func connect(asked request) (*client, error) {
	address, port, err := net.SplitHostPort(asked.Server)
	if err != nil {
		return nil, err
	}
	number, err := strconv.ParseUint(port, 10, 16)
	if err != nil {
		return nil, err
	}
	directory, err := os.MkdirTemp(".", "state-")
	if err != nil {
		return nil, err
	}
	param := vo.NacosClientParam{
		ClientConfig: &constant.ClientConfig{
			NamespaceId: asked.Namespace, Username: asked.Username, Password: asked.Password,
			TimeoutMs: 5000, NotLoadCacheAtStart: true, UpdateCacheWhenEmpty: true,
			LogDir: directory, CacheDir: directory, LogLevel: "warn",
		},
		ServerConfigs: []constant.ServerConfig{{IpAddr: address, Port: number}},
	}
	naming, err := clients.NewNamingClient(param)
	return &client{param: param, naming: naming}, err
}

func (c *client) configuration() (config_client.IConfigClient, error) {
	var err error
	c.once.Do(func() { c.config, err = clients.NewConfigClient(c.param) })
	return c.config, err
}

func shown(instances []model.Instance) []host {
	hosts := []host{}
	for _, i := range instances {
		hosts = append(hosts, host{
			i.InstanceId, i.Ip, i.Port, i.ClusterName, i.ServiceName, i.Weight, i.Healthy, i.Enable, i.Metadata,
		})
	}
	return hosts
}

func subscription(asked request) *vo.SubscribeParam {
	return &vo.SubscribeParam{
		ServiceName: asked.Service, GroupName: asked.Group, Clusters: asked.Clusters,
		SubscribeCallback: func(services []subscribed, err error) {
			hosts := []host{}
			for _, s := range services {
				hosts = append(hosts, host{
					s.InstanceId, s.Ip, s.Port, s.ClusterName, s.ServiceName, s.Weight, s.Healthy, s.Enable, s.Metadata,
				})
			}
			say(map[string]interface{}{"event": "naming", "name": asked.Name, "hosts": hosts})
		},
	}
}

func whole(asked request) vo.RegisterInstanceParam {
	if asked.Weight == 0 {
		asked.Weight = 1
	}
	return vo.RegisterInstanceParam{
		Ip: asked.IP, Port: asked.Port, Weight: asked.Weight, Enable: true, Healthy: true, Metadata: asked.Metadata,
		ClusterName: asked.Cluster, ServiceName: asked.Service, GroupName: asked.Group,
		Ephemeral: asked.Ephemeral == nil || *asked.Ephemeral,
	}
}

func perform(asked request) (interface{}, error) {
	if asked.Do == "connect" {
		made, err := connect(asked)
		connections.Store(asked.Client, made)
		return err == nil, err
	}
	found, _ := connections.Load(asked.Client)
	c := found.(*client)
	switch asked.Do {
	case "publish", "config", "remove", "listen":
		return configure(c, asked)
	}
	ephemeral := asked.Ephemeral == nil || *asked.Ephemeral
	if asked.Weight == 0 {
		asked.Weight = 1
	}
	place := vo.DeregisterInstanceParam{
		Ip: asked.IP, Port: asked.Port, Cluster: asked.Cluster, ServiceName: asked.Service, GroupName: asked.Group,
		Ephemeral: ephemeral,
	}
	key := fmt.Sprintf("%s %+v", asked.Client, place)
	switch asked.Do {
	case "register":
		registered.Store(key, func() { c.naming.DeregisterInstance(place) })
		return c.naming.RegisterInstance(whole(asked))
	case "batch":
		return batch(c.naming, asked)
	case "deregister":
		registered.Delete(key)
		return c.naming.DeregisterInstance(place)
	case "update":
		return c.naming.UpdateInstance(vo.UpdateInstanceParam{
			Ip: asked.IP, Port: asked.Port, ClusterName: asked.Cluster, ServiceName: asked.Service,
			GroupName: asked.Group, Ephemeral: ephemeral, Weight: asked.Weight, Enable: true, Metadata: asked.Metadata,
		})
	case "instances":
		instances, err := c.naming.SelectAllInstances(vo.SelectAllInstancesParam{
			Clusters: asked.Clusters, ServiceName: asked.Service, GroupName: asked.Group,
		})
		return shown(instances), err
	case "select":
		instances, err := c.naming.SelectInstances(vo.SelectInstancesParam{
			Clusters: asked.Clusters, ServiceName: asked.Service, GroupName: asked.Group, HealthyOnly: true,
		})
		return shown(instances), err
	case "one":
		instance, err := c.naming.SelectOneHealthyInstance(vo.SelectOneHealthInstanceParam{
			Clusters: asked.Clusters, ServiceName: asked.Service, GroupName: asked.Group,
		})
		if err != nil {
			return nil, err
		}
		return shown([]model.Instance{*instance}), nil
	case "services":
		page, err := c.naming.GetAllServicesInfo(vo.GetAllServiceInfoParam{
			NameSpace: asked.Namespace, GroupName: asked.Group, PageNo: 1, PageSize: asked.Size,
		})
		return map[string]interface{}{"count": page.Count, "names": page.Doms}, err
	case "subscribe":
		param := subscription(asked)
		subscriptions.Store(asked.Name, param)
		return true, c.naming.Subscribe(param)
	case "unsubscribe":
		param, _ := subscriptions.Load(asked.Name)
		return true, c.naming.Unsubscribe(param.(*vo.SubscribeParam))
	}
	return nil, fmt.Errorf("unknown")
}

func configure(c *client, asked request) (interface{}, error) {
	config, err := c.configuration()
	if err != nil {
		return nil, err
	}
	if asked.Group == "" {
		asked.Group = constant.DEFAULT_GROUP
	}
	param := vo.ConfigParam{DataId: asked.DataID, Group: asked.Group, Content: asked.Content}
	switch asked.Do {
	case "publish":
		return config.PublishConfig(param)
	case "config":
		return config.GetConfig(param)
	case "remove":
		return config.DeleteConfig(param)
	}
	param.OnChange = func(namespace, group, dataID, data string) {
		say(map[string]interface{}{"event": "config", "name": asked.Name, "content": data})
	}
	return true, config.ListenConfig(param)
}

func leaveOnSigterm() {
	told := make(chan os.Signal, 1)
	signal.Notify(told, syscall.SIGTERM)
	<-told
	registered.Range(func(_, deregister interface{}) bool {
		deregister.(func())()
		return true
	})
	os.Exit(0)
}

func main() {
	go leaveOnSigterm()
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<22)
	say(map[string]interface{}{"event": "ready"})
	for lines.Scan() {
		var asked request
		if err := json.Unmarshal(lines.Bytes(), &asked); err != nil {
			panic(err)
		}
		go func() {
			answer := map[string]interface{}{"id": asked.ID}
			ok, err := perform(asked)
			if err != nil {
				answer["error"] = err.Error()
			} else {
				answer["ok"] = ok
			}
			say(answer)
		}()
	}
}
