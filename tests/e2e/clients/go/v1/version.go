package main

import (
	"fmt"

	"github.com/nacos-group/nacos-sdk-go/clients/naming_client"
	"github.com/nacos-group/nacos-sdk-go/model"
)

type subscribed = model.SubscribeService

func batch(_ naming_client.INamingClient, _ request) (bool, error) {
	return false, fmt.Errorf("v1 has no such call")
}
