package shape

import (
	"sort"

	"berth/cli/apiv1"
)

type image struct {
	ID           string `json:"Id"`
	RepoTags     []string
	RepoDigests  []string
	Created      string
	Author       string
	Architecture string
	Variant      string `json:",omitempty"`
	Os           string
	Size         int64
	GraphDriver  struct{ Name string }
	RootFS       struct {
		Type   string
		Layers []string
	}
	Config     imageConfig
	Descriptor descriptor
}

type descriptor struct {
	MediaType string `json:"mediaType"`
	Digest    string `json:"digest"`
}

type imageConfig struct {
	User         string              `json:",omitempty"`
	ExposedPorts map[string]struct{} `json:",omitempty"`
	Env          []string
	Entrypoint   []string
	Cmd          []string
	Volumes      map[string]struct{} `json:",omitempty"`
	WorkingDir   string
	Labels       map[string]string
	StopSignal   string   `json:",omitempty"`
	Shell        []string `json:",omitempty"`
}

// Image gives an image as `docker image inspect` prints it.
func Image(i *apiv1.Image) any {
	c := i.GetConfig()
	out := image{
		ID: i.GetId(), RepoTags: list(i.GetTags()), RepoDigests: list(i.GetDigests()), Created: stamp(i.GetCreatedAt()), Author: i.GetAuthor(),
		Architecture: i.GetArchitecture(), Variant: i.GetVariant(), Os: i.GetOs(), Size: i.GetSizeBytes(),
		Config: imageConfig{
			User: c.GetUser(), ExposedPorts: set(c.GetExposedPorts()), Env: c.GetEnv(), Entrypoint: c.GetEntrypoint(), Cmd: c.GetCmd(),
			Volumes: set(c.GetVolumes()), WorkingDir: c.GetWorkingDir(), Labels: c.GetLabels(), StopSignal: c.GetStopSignal(), Shell: c.GetShell(),
		},
		Descriptor: descriptor{i.GetManifestMediaType(), i.GetManifestDigest()},
	}
	out.GraphDriver.Name = i.GetDriver()
	out.RootFS.Type, out.RootFS.Layers = "layers", list(i.GetLayers())
	return out
}

type network struct {
	Name       string
	ID         string `json:"Id"`
	Created    string
	Scope      string
	Driver     string
	EnableIPv6 bool
	IPAM       ipam
	Internal   bool
	Containers map[string]networkMember
	Options    map[string]string
	Labels     map[string]string
}

type ipam struct {
	Driver string
	Config []subnet
}

type subnet struct {
	Subnet  string
	Gateway string `json:",omitempty"`
}

type networkMember struct {
	EndpointID  string
	MacAddress  string
	IPv4Address string
	IPv6Address string
}

// Network gives a network as `docker network inspect` prints it.
func Network(n *apiv1.Network) any {
	out := network{
		Name: n.GetName(), ID: n.GetId(), Created: stamp(n.GetCreatedAt()), Scope: "local", Driver: n.GetDriver(), EnableIPv6: n.GetSubnet6() != "",
		IPAM: ipam{Driver: "default", Config: []subnet{}}, Internal: n.GetInternal(), Containers: map[string]networkMember{},
		Options: dict(n.GetOptions()), Labels: dict(n.GetLabels()),
	}
	if n.GetSubnet() != "" {
		out.IPAM.Config = append(out.IPAM.Config, subnet{n.GetSubnet(), n.GetGateway()})
	}
	if n.GetSubnet6() != "" {
		out.IPAM.Config = append(out.IPAM.Config, subnet{n.GetSubnet6(), n.GetGateway6()})
	}
	for id, e := range n.GetEndpoints() {
		out.Containers[id] = networkMember{e.GetEndpointId(), e.GetMacAddress(), e.GetIpAddress(), e.GetIpv6Address()}
	}
	if out.Options == nil {
		out.Options = map[string]string{}
	}
	return out
}

type volume struct {
	CreatedAt  string
	Driver     string
	Labels     map[string]string
	Mountpoint string
	Name       string
	Options    map[string]string
	Scope      string
}

// Volume gives a volume as `docker volume inspect` prints it.
func Volume(v *apiv1.Volume) any {
	return volume{stamp(v.GetCreatedAt()), v.GetDriver(), dict(v.GetLabels()), v.GetMountpoint(), v.GetName(), dict(v.GetOptions()), "local"}
}

func list(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}

func dict(m map[string]string) map[string]string {
	if m == nil {
		return map[string]string{}
	}
	return m
}

func set(names []string) map[string]struct{} {
	if len(names) == 0 {
		return nil
	}
	sort.Strings(names)
	m := make(map[string]struct{}, len(names))
	for _, n := range names {
		m[n] = struct{}{}
	}
	return m
}
