// Package config reads /etc/berth/berth.toml: one file, a section per daemon,
// every key with a default. A key nobody knows is refused with its line, for a
// misspelt limit that silently does nothing is worse than a daemon that does
// not start. The file is optional.
//
// Where the engine keeps its files comes, first match wins, from the flags
// --root and --run, the variables BERTH_ROOT and BERTH_RUN, the file, and the
// defaults.
package config

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/pelletier/go-toml/v2"

	"berth/internal/fault"
)

// Places used unless said otherwise.
const (
	DefaultFile = "/etc/berth/berth.toml"
	DefaultRoot = "/var/lib/berth"
	DefaultRun  = "/run/berth"
)

// Config is the whole file. Each daemon gets all of it and reads its section.
type Config struct {
	// Root holds what must survive a reboot; absolute.
	Root string `toml:"root"`
	// Run holds sockets, locks and the state of --rm containers; absolute, on a tmpfs.
	Run string `toml:"run"`
	// LogLevel is trace, debug, info, warn or error.
	LogLevel string `toml:"log_level"`

	Apid   Apid   `toml:"apid"`
	Imaged Imaged `toml:"imaged"`
	Netd   Netd   `toml:"netd"`
	Execd  Execd  `toml:"execd"`
}

// Apid is the section of the gateway.
type Apid struct {
	// JobHistory is how many finished jobs are remembered.
	JobHistory int `toml:"job_history"`
	// Standby is how many root file systems and endpoints are kept ready at most, for 10 seconds after a run; 0 keeps
	// none.
	Standby int `toml:"standby"`
	// PullTimeout ends a pull, however well it goes.
	PullTimeout Duration `toml:"pull_timeout"`
}

// Registry is how to reach one registry.
type Registry struct {
	// CAFiles are PEM files of authorities that are trusted for it beside the system's.
	CAFiles []string `toml:"ca_files"`
	// ClientCert and ClientKey are PEM files of what this host shows of itself.
	ClientCert string `toml:"client_cert"`
	ClientKey  string `toml:"client_key"`
	// Insecure accepts any certificate, and clear HTTP from a registry that speaks no TLS.
	Insecure bool `toml:"insecure"`
	// PlainHTTP speaks clear HTTP and nothing else.
	PlainHTTP bool `toml:"plain_http"`
	// Proxy is the URL of an HTTP or SOCKS proxy, or "none"; empty: what the environment says.
	Proxy string `toml:"proxy"`
	// Mirrors are base URLs that pulls try before it, in order.
	Mirrors []string `toml:"mirrors"`
}

// Imaged is the section of the image daemon.
type Imaged struct {
	// Driver stores layers: "auto" takes what the store has, in a new one the best this host can do; or name one
	// ("overlay", "erofs", "copy").
	Driver string `toml:"driver"`
	// ParallelDownloads is the number of blobs fetched at once, over all pulls.
	ParallelDownloads int `toml:"parallel_downloads"`
	// ParallelUnpacks is the number of layers unpacked at once; 0 is one per processor.
	ParallelUnpacks int `toml:"parallel_unpacks"`
	// StallTimeout aborts a download that makes no progress.
	StallTimeout Duration `toml:"stall_timeout"`
	// InsecureRegistries are hosts (host or host:port) spoken to without TLS verification or in clear.
	InsecureRegistries []string `toml:"insecure_registries"`
	// Mirrors maps a registry host to base URLs tried before it, in order.
	Mirrors map[string][]string `toml:"mirrors"`
	// Registries says by host how to reach registries; see below.
	Registries map[string]Registry `toml:"registries"`
	// MaxLayerSize is how much one layer may unpack to.
	MaxLayerSize Size `toml:"max_layer_size"`
	// MaxLayerEntries is how many files one layer may hold.
	MaxLayerEntries int64 `toml:"max_layer_entries"`
	// CollectAge removes images that nothing has used for so long; 0s never does.
	CollectAge Duration `toml:"collect_age"`
	// CollectAbove is the percentage of the disk in use at which unused images are removed, the longest unused first, until
	// CollectBelow is reached; 0 never removes any.
	CollectAbove int `toml:"collect_above"`
	// CollectBelow is the percentage of the disk in use at which removing ends.
	CollectBelow int `toml:"collect_below"`
	// Pins are images that are never removed on their own: patterns of names ("team/*", "*:stable"), or ids.
	Pins []string `toml:"pins"`
	// Signatures are rules about who must have signed what is pulled, of which the first that fits counts; see below.
	Signatures []Signature `toml:"signatures"`

	Serve Serve `toml:"serve"`
}

// Signature is a rule about who must have signed the images of some repositories.
type Signature struct {
	// Repositories are patterns: "docker.io/library/*", "registry.corp/team/**", "**".
	Repositories []string `toml:"repositories"`
	// Require is "signed", "accept" or "reject".
	Require string `toml:"require"`
	// Keys are PEM files of public keys, one of which must have signed.
	Keys []string `toml:"keys"`
	// SignedAs are patterns of the repositories that signatures may be for; empty: the one that is pulled.
	SignedAs []string `toml:"signed_as"`
}

// Serve is the section of the image daemon's registry for other hosts.
type Serve struct {
	// Listen is the address, such as "0.0.0.0:5000"; empty serves nothing.
	Listen string `toml:"listen"`
	// Name is what names of pushed images begin with; empty is "localhost:" and the port.
	Name string `toml:"name"`
	// TLSCert is a PEM file of the certificate and those between it and its authority. Without one, clear HTTP is spoken,
	// on the loopback only.
	TLSCert string `toml:"tls_cert"`
	// TLSKey is the PEM file of its key.
	TLSKey string `toml:"tls_key"`
	// Insecure allows clear HTTP on other addresses than the loopback.
	Insecure bool `toml:"insecure"`
	// Users is a file of lines NAME:HASH with bcrypt hashes, as `htpasswd -B` writes them. Whoever is in it may pull.
	Users string `toml:"users"`
	// PushUsers are those of the users who may push and delete.
	PushUsers []string `toml:"push_users"`
	// AnonymousPull lets anybody pull who reaches the address.
	AnonymousPull bool `toml:"anonymous_pull"`
}

// Netd is the section of the network daemon.
type Netd struct {
	// DefaultSubnet is the IPv4 subnet of the default bridge network, in CIDR form.
	DefaultSubnet string `toml:"default_subnet"`
	// SubnetPool is what subnets of new networks are cut from, in CIDR form.
	SubnetPool string `toml:"subnet_pool"`
	// SubnetBits is the prefix length of a subnet cut from the pool.
	SubnetBits int `toml:"subnet_bits"`
	// PoolSize is the number of network namespaces kept ready for the default network; 0 keeps none.
	PoolSize int `toml:"pool_size"`
	// MTU of bridges and veth pairs; 0 takes that of the default route's link.
	MTU int `toml:"mtu"`
	// DNS are the servers containers ask; empty takes the host's.
	DNS []string `toml:"dns"`
	// DNSSearch are the search domains of containers; empty takes the host's.
	DNSSearch []string `toml:"dns_search"`
	// Firewall is "nftables", "iptables", "none" or "auto".
	Firewall string `toml:"firewall"`
	// PublishAddress is the host address of published ports that name none.
	PublishAddress string `toml:"publish_address"`
}

// Execd is the section of the container daemon.
type Execd struct {
	// DefaultCapabilities is "berth" (11 capabilities) or "docker" (these and NET_RAW, MKNOD, AUDIT_WRITE).
	DefaultCapabilities string `toml:"default_capabilities"`
	// Userns is "host" or "private" for containers that do not say.
	Userns string `toml:"userns"`
	// SeccompProfile is "default", "unconfined" or the path of a profile in the OCI JSON format.
	SeccompProfile string `toml:"seccomp_profile"`
	// CgroupParent is the group all containers live under.
	CgroupParent string `toml:"cgroup_parent"`
	// PidsLimit of containers that do not say; 0 is min(16384, pid_max/8), -1 none.
	PidsLimit int64 `toml:"pids_limit"`
	// ShmSize of containers that do not say.
	ShmSize Size `toml:"shm_size"`
	// LogMaxSize is the size at which a container's log is rotated.
	LogMaxSize Size `toml:"log_max_size"`
	// LogMaxFiles is how many files of a container's log are kept.
	LogMaxFiles int `toml:"log_max_files"`
	// StopTimeout is the time between SIGTERM and SIGKILL for containers that do not say.
	StopTimeout Duration `toml:"stop_timeout"`
	// PoolSize is the number of init processes kept ready; 0 keeps none.
	PoolSize int `toml:"pool_size"`
}

// Default is the configuration of a host without a file.
func Default() *Config {
	return &Config{
		Root:     DefaultRoot,
		Run:      DefaultRun,
		LogLevel: "info",
		Apid: Apid{
			JobHistory:  1000,
			Standby:     8,
			PullTimeout: Duration(30 * time.Minute),
		},
		Imaged: Imaged{
			Driver:            "auto",
			ParallelDownloads: 6,
			StallTimeout:      Duration(60 * time.Second),
			MaxLayerSize:      64 << 30,
			MaxLayerEntries:   10_000_000,
			CollectBelow:      80,
		},
		Netd: Netd{
			DefaultSubnet:  "10.88.0.0/16",
			SubnetPool:     "10.89.0.0/16",
			SubnetBits:     24,
			PoolSize:       16,
			Firewall:       "auto",
			PublishAddress: "0.0.0.0",
		},
		Execd: Execd{
			DefaultCapabilities: "berth",
			Userns:              "host",
			SeccompProfile:      "default",
			CgroupParent:        "berth",
			ShmSize:             64 << 20,
			LogMaxSize:          10 << 20,
			LogMaxFiles:         3,
			StopTimeout:         Duration(10 * time.Second),
			PoolSize:            4,
		},
	}
}

// Load reads file over the defaults. An empty file name means DefaultFile,
// which may be absent; a named one must exist. root and run, unless empty,
// stand above everything else (they are the flags).
func Load(file, root, run string) (*Config, error) {
	c := Default()
	data, err := os.ReadFile(cmp.Or(file, DefaultFile))
	switch {
	case err == nil:
		if err := c.decode(cmp.Or(file, DefaultFile), data); err != nil {
			return nil, err
		}
	case file == "" && errors.Is(err, fs.ErrNotExist):
	default:
		return nil, err
	}
	c.Root = cmp.Or(root, os.Getenv("BERTH_ROOT"), c.Root)
	c.Run = cmp.Or(run, os.Getenv("BERTH_RUN"), c.Run)
	for _, dir := range []*string{&c.Root, &c.Run} {
		if *dir, err = filepath.Abs(*dir); err != nil {
			return nil, err
		}
	}
	return c, c.check()
}

func (c *Config) decode(file string, data []byte) error {
	err := toml.NewDecoder(bytes.NewReader(data)).DisallowUnknownFields().Decode(c)
	var unknown *toml.StrictMissingError
	var wrong *toml.DecodeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &unknown):
		first := unknown.Errors[0]
		line, _ := first.Position()
		return bad("%s:%d: unknown key %q", file, line, strings.Join(first.Key(), "."))
	case errors.As(err, &wrong):
		line, _ := wrong.Position()
		return bad("%s:%d: %s", file, line, strings.TrimPrefix(wrong.Error(), "toml: "))
	}
	return bad("%s: %w", file, err)
}

// check refuses values that no daemon could work with.
func (c *Config) check() error {
	oneOf := func(key, value string, allowed ...string) error {
		for _, a := range allowed {
			if value == a {
				return nil
			}
		}
		return bad("%s = %q: want one of %s", key, value, strings.Join(allowed, ", "))
	}
	positive := func(key string, n int64) error {
		if n < 1 {
			return bad("%s = %d: want at least 1", key, n)
		}
		return nil
	}
	percent := func(key string, n int) error {
		if n < 0 || n > 100 {
			return bad("%s = %d: want a percentage", key, n)
		}
		return nil
	}
	return errors.Join(
		oneOf("log_level", c.LogLevel, "trace", "debug", "info", "warn", "error"),
		oneOf("execd.default_capabilities", c.Execd.DefaultCapabilities, "berth", "docker"),
		oneOf("execd.userns", c.Execd.Userns, "host", "private"),
		oneOf("netd.firewall", c.Netd.Firewall, "auto", "nftables", "iptables", "none"),
		positive("apid.job_history", int64(c.Apid.JobHistory)),
		positive("imaged.parallel_downloads", int64(c.Imaged.ParallelDownloads)),
		percent("imaged.collect_above", c.Imaged.CollectAbove),
		percent("imaged.collect_below", c.Imaged.CollectBelow),
		positive("execd.log_max_size", int64(c.Execd.LogMaxSize)),
		positive("execd.log_max_files", int64(c.Execd.LogMaxFiles)),
	)
}

func bad(format string, args ...any) error {
	return fault.InvalidArgument.Errorf("BAD_CONFIG", format, args...)
}

// Instance tells engines on one host apart: it is empty for the default root
// and otherwise six hex digits made from the root's path. Names of bridges,
// nftables tables and cgroups end in it.
func (c *Config) Instance() string {
	root := filepath.Clean(c.Root)
	if root == DefaultRoot {
		return ""
	}
	sum := sha256.Sum256([]byte(root))
	return hex.EncodeToString(sum[:3])
}

// Named is name with the instance behind it: "berth" or "berth-1f0c9a".
func (c *Config) Named(name string) string {
	if i := c.Instance(); i != "" {
		return name + "-" + i
	}
	return name
}

// Duration is written as in Go: "30s", "5m".
type Duration time.Duration

// UnmarshalText is called by the decoder.
func (d *Duration) UnmarshalText(text []byte) error {
	v, err := time.ParseDuration(string(text))
	if err == nil && v < 0 {
		err = fmt.Errorf("negative duration %q", text)
	}
	*d = Duration(v)
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (d Duration) MarshalText() ([]byte, error) { return []byte(time.Duration(d).String()), nil }

// Size is a number of bytes, written as "64MiB", "10m" (both binary) or "4096".
type Size int64

// UnmarshalText is called by the decoder.
func (s *Size) UnmarshalText(text []byte) error {
	v, err := units.RAMInBytes(string(text))
	*s = Size(v)
	return err
}

// MarshalText is the inverse of UnmarshalText.
func (s Size) MarshalText() ([]byte, error) { return fmt.Appendf(nil, "%d", int64(s)), nil }
