package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"berth/internal/config"
	"berth/internal/fault"
	"berth/services/imaged/registry"
	registrytest "berth/test/registry"

	"github.com/hashicorp/go-hclog"
)

// TestRegistriesOfConfig: what the configuration says of a registry is what it takes to reach a real one.
func TestRegistriesOfConfig(t *testing.T) {
	dir := t.TempDir()
	clients := registrytest.NewCA(t)
	write := func(name string, b []byte) string {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	certPEM, keyPEM := clients.Issue(t, "client")
	cert, key := write("cert.pem", certPEM), write("key.pem", keyPEM)
	reg := registrytest.Start(t, registrytest.Options{TLS: true, ClientCA: write("clients.pem", clients.PEM)})
	ping := func(r config.Registry) error {
		c := registry.New(registryOptions(config.Imaged{Registries: map[string]config.Registry{reg.Host: r}}, hclog.NewNullLogger()))
		defer c.Close()
		return c.Ping(t.Context(), reg.Host, registry.Auth{})
	}
	if err := ping(config.Registry{CAFiles: []string{reg.CAFile}, ClientCert: cert, ClientKey: key}); err != nil {
		t.Errorf("CA and client certificate: %v", err)
	}
	if err := ping(config.Registry{Insecure: true, ClientCert: cert, ClientKey: key}); err != nil {
		t.Errorf("insecure: %v", err)
	}
	for name, r := range map[string]config.Registry{
		"no CA": {ClientCert: cert, ClientKey: key}, "no client certificate": {CAFiles: []string{reg.CAFile}}, "clear": {PlainHTTP: true},
		"no such file": {CAFiles: []string{filepath.Join(dir, "none")}}, "no PEM": {CAFiles: []string{write("junk", []byte("junk"))}},
		"proxy": {CAFiles: []string{reg.CAFile}, ClientCert: cert, ClientKey: key, Proxy: "nonsense"},
	} {
		if err := ping(r); err == nil || fault.KindOf(err) == fault.Internal {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestProxyOfConfig(t *testing.T) {
	var asked []string
	proxy := httptest.NewServer(http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) { asked = append(asked, r.URL.String()) }))
	defer proxy.Close()
	c := registry.New(registryOptions(config.Imaged{Registries: map[string]config.Registry{
		"registry.invalid:5000": {PlainHTTP: true, Proxy: proxy.URL},
	}}, hclog.NewNullLogger()))
	defer c.Close()
	if err := c.Ping(t.Context(), "registry.invalid:5000", registry.Auth{}); err != nil {
		t.Error(err)
	}
	if got := strings.Join(asked, " "); got != "http://registry.invalid:5000/v2/" {
		t.Errorf("the proxy was asked for %q", got)
	}
}
