package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// addCerts completes a host's settings by what lies in CertsDir for it.
func (c *Client) addCerts(h *Host, host string) (found bool, err error) {
	// The host may come from a redirect, so it must not lead out of the folder.
	if c.certsDir == "" || strings.Contains(host, "/") || strings.HasPrefix(host, ".") {
		return false, nil
	}
	if host == dialHost("docker.io") {
		host = "docker.io"
	}
	dir := filepath.Join(c.certsDir, host)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read certificates: %w", err)
	}
	h.CAFiles = slices.Clone(h.CAFiles) // it belongs to the Options
	for _, e := range entries {
		file := filepath.Join(dir, e.Name())
		switch filepath.Ext(file) {
		case ".crt":
			h.CAFiles = append(h.CAFiles, file)
		case ".cert":
			h.ClientCert, h.ClientKey = file, strings.TrimSuffix(file, ".cert")+".key"
		}
	}
	return true, nil
}

func tlsConfig(h Host) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: h.Insecure}
	if len(h.CAFiles) > 0 {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		for _, file := range h.CAFiles {
			pem, err := os.ReadFile(file)
			if err != nil {
				return nil, fmt.Errorf("read CA file: %w", err)
			}
			if !pool.AppendCertsFromPEM(pem) {
				return nil, fmt.Errorf("CA file %s holds no PEM certificate", file)
			}
		}
		conf.RootCAs = pool
	}
	if h.ClientCert != "" || h.ClientKey != "" {
		cert, err := tls.LoadX509KeyPair(h.ClientCert, h.ClientKey)
		if err != nil {
			return nil, fmt.Errorf("load client certificate %s: %w", h.ClientCert, err)
		}
		conf.Certificates = []tls.Certificate{cert}
	}
	return conf, nil
}
