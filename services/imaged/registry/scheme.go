package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"syscall"
	"time"
)

// clearLife is how long a host is remembered to speak clear HTTP.
const clearLife = time.Minute

// scheme decides how to speak to a registry, before anything is said to it.
func (c *Client) scheme(ctx context.Context, s site) (string, error) {
	conf := c.hosts[s.host]
	switch {
	case s.scheme != "":
		return s.scheme, nil
	case conf.PlainHTTP:
		return "http", nil
	case !isLoopback(s.host) && !conf.Insecure:
		return "https", nil
	}
	c.mu.Lock()
	known := time.Now().Before(c.clear[s.host])
	c.mu.Unlock()
	if known {
		return "http", nil
	}
	spoken, err := c.speaksClear(ctx, s.host)
	if err != nil || !spoken {
		return "https", err
	}
	c.log.Debug("registry speaks clear HTTP", "registry", s.name)
	c.mu.Lock()
	c.clear[s.host] = time.Now().Add(clearLife)
	c.mu.Unlock()
	return "http", nil
}

// forget makes the next call ask again, as another program may have taken the port.
func (c *Client) forget(s site) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.clear, s.host)
}

// speaksClear greets a registry in TLS and tells whether the reply was HTTP, which is what
// HTTP servers send to a greeting they cannot read. Anything else, a broken-off handshake
// included, is left for https to succeed or fail with. Certificates do not matter here:
// nothing is sent, and the real connection checks them.
func (c *Client) speaksClear(ctx context.Context, host string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, c.connect)
	defer cancel()
	address := host
	if _, _, err := net.SplitHostPort(host); err != nil {
		address = net.JoinHostPort(hostname(host), "443")
	}
	conn, err := c.dialer(host)(ctx, "tcp", address)
	if err != nil {
		// Without a port given, clear HTTP has one of its own.
		return address != host && errors.Is(err, syscall.ECONNREFUSED), nil
	}
	defer conn.Close()
	err = tls.Client(conn, &tls.Config{InsecureSkipVerify: true}).HandshakeContext(ctx)
	var record tls.RecordHeaderError
	return errors.As(err, &record) && strings.HasPrefix(string(record.RecordHeader[:]), "HTTP/"), ctx.Err()
}
