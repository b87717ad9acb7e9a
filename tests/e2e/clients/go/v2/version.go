package main

import (
	"github.com/nacos-group/nacos-sdk-go/v2/clients/naming_client"
	"github.com/nacos-group/nacos-sdk-go/v2/model"
	"github.com/nacos-group/nacos-sdk-go/v2/vo"
)

type subscribed = model.Instance

func batch(naming naming_client.INamingClient, asked request) (bool, error) {
	param := vo.BatchRegisterInstanceParam{ServiceName: asked.Service, GroupName: asked.Group}
	for _, one := range asked.Instances {
		param.Instances = append(param.Instances, whole(one))
	}
	return naming.BatchRegisterInstance(param)
}
