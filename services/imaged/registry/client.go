package registry

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/distribution/reference"
	"github.com/hashicorp/go-hclog"
)

// Options configure a Client. The zero value works.
type Options struct {
	// Hosts holds what differs from the defaults, by registry as references name it:
	// "docker.io", "registry.example:5000".
	Hosts map[string]Host
	// CertsDir holds certificates by registry, as /etc/docker/certs.d does: a folder named
	// host or host:port with CAs in *.crt and a client's pair in NAME.cert and NAME.key.
	// They add to Hosts. Empty for none.
	CertsDir string
	// UserAgent is sent with every request; "berth" if empty.
	UserAgent string
	// ConnectTimeout bounds TCP connect and TLS handshake, each; 10 s if zero.
	ConnectTimeout time.Duration
	// StallTimeout ends a transfer that made no progress for this long; 60 s if zero.
	StallTimeout time.Duration
	// Retries is how often a request is repeated after a reset connection, a 429 or a 5xx;
	// 4 if zero, none if negative.
	Retries int
	// Bandwidth is what SetBandwidth sets, in bytes a second; 0 for no limit.
	Bandwidth int64
	// Uploads remembers how far uploads are, so that another process goes on with them; nil: only this one does. What a
	// push leaves there begins with "upload/" and goes after a day.
	Uploads Records
	// Log receives retries and fallbacks at debug level; nil for none.
	Log hclog.Logger
}

// Host is how to reach one registry or token server.
type Host struct {
	PlainHTTP  bool     // speak clear HTTP, and only that
	Insecure   bool     // accept any certificate, and clear HTTP from a registry that speaks no TLS
	CAFiles    []string // PEM files, trusted beside the system's
	ClientCert string   // PEM file with the client's certificate chain
	ClientKey  string   // PEM file with its key
	Proxy      string   // URL of an HTTP or SOCKS5 proxy, "none" for no proxy; empty: the environment's

	// Mirrors are base URLs such as "https://mirror.example" that pulls try before the
	// registry itself, in order. They are asked anonymously.
	Mirrors []string
}

// Client talks to registries. It is safe for concurrent use.
type Client struct {
	hosts     map[string]Host // by dialled host
	certsDir  string
	userAgent string
	connect   time.Duration
	stall     time.Duration
	retries   int
	backoff   time.Duration // before the first retry; doubles each time
	log       hclog.Logger
	mirrors   map[string][]site // by dialled host of the registry they stand in for
	dial      dialFunc          // nil but in tests

	grants   grants
	sessions *sessions
	chunks   chunks

	down, up throttle

	mu         sync.Mutex
	transports map[string]*http.Transport // by dialled host; "" serves hosts without settings
	clear      map[string]time.Time       // hosts found to speak clear HTTP, until when
	away       map[string]time.Time       // mirrors found unavailable, until when
}

// chunks bounds how many bytes of a blob are sent at once.
type chunks struct{ least, first, most int64 }

type dialFunc func(ctx context.Context, network, address string) (net.Conn, error)

// New makes a Client. Certificate files are read when their host is first used, so a broken
// one fails calls to that host only; a malformed mirror is logged and left out.
func New(o Options) *Client {
	c := &Client{
		hosts:      make(map[string]Host, len(o.Hosts)),
		certsDir:   o.CertsDir,
		userAgent:  o.UserAgent,
		connect:    o.ConnectTimeout,
		stall:      o.StallTimeout,
		retries:    o.Retries,
		backoff:    250 * time.Millisecond,
		log:        o.Log,
		grants:     newGrants(),
		sessions:   openSessions(o.Uploads),
		chunks:     chunks{leastChunk, firstChunk, mostChunk},
		transports: make(map[string]*http.Transport),
		mirrors:    make(map[string][]site),
		clear:      make(map[string]time.Time),
		away:       make(map[string]time.Time),
	}
	c.SetBandwidth(o.Bandwidth)
	if c.userAgent == "" {
		c.userAgent = "berth"
	}
	if c.connect <= 0 {
		c.connect = 10 * time.Second
	}
	if c.stall <= 0 {
		c.stall = 60 * time.Second
	}
	switch {
	case o.Retries == 0:
		c.retries = 4
	case o.Retries < 0:
		c.retries = 0
	}
	if c.log == nil {
		c.log = hclog.NewNullLogger()
	}
	for name, host := range o.Hosts {
		c.hosts[dialHost(name)] = host
		for _, base := range host.Mirrors {
			m, err := parseMirror(base)
			if err != nil {
				c.log.Warn("leaving out a mirror", "registry", name, "error", err)
				continue
			}
			c.mirrors[dialHost(name)] = append(c.mirrors[dialHost(name)], m)
		}
	}
	return c
}

// Close drops idle connections. Calls under way are not disturbed.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, t := range c.transports {
		t.CloseIdleConnections()
	}
}

// site is one registry as a call addresses it.
type site struct {
	name string // as references write it: docker.io
	host string // as it is dialled: registry-1.docker.io

	scheme string // of a mirror, whose URL says it; else empty
}

// repository is a validated repository of a site.
type repository struct {
	site
	path string // library/nginx
}

func (r repository) String() string { return r.name + "/" + r.path }

// parseSite accepts what references accept as their domain, so that nothing else (userinfo,
// paths, queries) can slip into a URL.
func parseSite(host string) (site, error) {
	named, err := reference.ParseNormalizedNamed(host + "/x")
	if err != nil || reference.Domain(named) != host {
		return site{}, invalid("registry address %q: want host or host:port", host)
	}
	return site{name: host, host: dialHost(host)}, nil
}

// parseRepository reads a reference again from its text: reference.Named is an interface,
// so where the value came from says nothing about what is in it.
func parseRepository(ref reference.Named) (repository, error) {
	if ref == nil {
		return repository{}, invalid("image reference is empty")
	}
	named, err := reference.ParseNormalizedNamed(ref.Name())
	if err != nil || !reference.IsNameOnly(named) {
		return repository{}, invalid("image name %q is malformed", ref.Name())
	}
	name := reference.Domain(named)
	return repository{site: site{name: name, host: dialHost(name)}, path: reference.Path(named)}, nil
}

// dialHost maps the one registry whose name is not its address.
func dialHost(name string) string {
	if name == "docker.io" || name == "index.docker.io" {
		return "registry-1.docker.io"
	}
	return name
}

// isLoopback tells whether a host, with or without port, names this machine's loopback.
func isLoopback(host string) bool {
	name := hostname(host)
	if name == "localhost" {
		return true
	}
	addr, err := netip.ParseAddr(name)
	return err == nil && addr.Unmap().IsLoopback()
}

// hostname strips port and brackets.
func hostname(host string) string {
	if name, _, err := net.SplitHostPort(host); err == nil {
		return name
	}
	return strings.TrimSuffix(strings.TrimPrefix(host, "["), "]")
}

// transport returns the connection pool for a host. Each host with settings has its own, so
// that a client certificate or a skipped verification stays with the host it was configured
// for when a redirect leads elsewhere.
func (c *Client) transport(host string) (*http.Transport, error) {
	conf, configured := c.hosts[host]
	certified, err := c.addCerts(&conf, host)
	if err != nil {
		return nil, err
	}
	key := ""
	if configured || certified || isLoopback(host) {
		key = host
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if t, ok := c.transports[key]; ok {
		return t, nil
	}
	tlsConf, err := tlsConfig(conf)
	if err != nil {
		return nil, err
	}
	proxy, err := proxyFor(conf.Proxy)
	if err != nil {
		return nil, err
	}
	if conf.Proxy == "" && (isLoopback(host) || c.dial != nil) {
		proxy = nil
	}
	t := &http.Transport{
		Proxy:               proxy,
		DialContext:         c.dialer(host),
		TLSClientConfig:     tlsConf,
		TLSHandshakeTimeout: c.connect,
		// Layers are fetched over several connections; HTTP/2 would put them on one, behind
		// one congestion window. Leaving it out also leaves out its floods.
		ForceAttemptHTTP2:   false,
		TLSNextProto:        map[string]func(string, *tls.Conn) http.RoundTripper{},
		DisableCompression:  true, // lengths and ranges count the stored bytes
		MaxIdleConnsPerHost: 8,
		IdleConnTimeout:     60 * time.Second,
		ReadBufferSize:      64 << 10,
		WriteBufferSize:     64 << 10,
		// A response's headers; bodies have their own limits.
		MaxResponseHeaderBytes: 256 << 10,
	}
	c.transports[key] = t
	return t, nil
}

// proxyFor reads a Host's Proxy.
func proxyFor(text string) (func(*http.Request) (*url.URL, error), error) {
	switch text {
	case "":
		return http.ProxyFromEnvironment, nil
	case "none":
		return nil, nil
	}
	u, err := url.Parse(text)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "socks5" && u.Scheme != "socks5h" {
		return nil, fmt.Errorf("proxy %q is not a URL such as http://proxy.example:3128", redactURL(text))
	}
	return http.ProxyURL(u), nil
}

func (c *Client) dialer(host string) dialFunc {
	if c.dial != nil {
		return c.dial
	}
	d := &net.Dialer{Timeout: c.connect, KeepAlive: 30 * time.Second}
	if isLoopback(host) {
		// What is said in clear because it stays on this machine must stay on it, whatever
		// /etc/hosts makes of "localhost".
		d.Control = loopbackOnly
	}
	return d.DialContext
}

var errNotLoopback = errors.New("address is not on the loopback")

// loopbackOnly is a net.Dialer.Control: it sees the address after name resolution.
func loopbackOnly(_, address string, _ syscall.RawConn) error {
	addr, err := netip.ParseAddrPort(address)
	if err != nil || !addr.Addr().Unmap().IsLoopback() {
		return errNotLoopback
	}
	return nil
}
