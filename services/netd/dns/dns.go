// Package dns works out what a container's /etc/resolv.conf says: what was
// asked for, else what the engine is configured to say, else what the host uses.
package dns

import (
	"net/netip"
	"os"
	"slices"
	"strings"
)

// Settings are the three things resolv.conf(5) can say.
type Settings struct {
	Nameservers []string
	Search      []string
	Options     []string
}

// Files in the order they are read. systemd-resolved puts its own stub, which
// listens on the host's loopback, into the first; the second holds the servers
// it asks itself.
var files = []string{"/etc/resolv.conf", "/run/systemd/resolve/resolv.conf"}

// Defaults are asked when the host names no server that a container could
// reach: Google's public resolvers, as Docker does.
var Defaults = []string{"8.8.8.8", "8.8.4.4"}

// Host is what the host's programs use. With onHost set it is for a container
// in the host's network, and said as it is; otherwise servers on the host's
// loopback are left out, for 127.0.0.53 in a container is the container.
func Host(onHost bool) Settings { return host(files, onHost) }

func host(files []string, onHost bool) Settings {
	var found Settings
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			continue // a host without the file is asked of the next, then gets Defaults
		}
		s := Parse(string(data))
		if onHost {
			return s
		}
		if found.Search == nil {
			found.Search, found.Options = s.Search, s.Options
		}
		if found.Nameservers = slices.DeleteFunc(s.Nameservers, unreachable); len(found.Nameservers) > 0 {
			return found
		}
	}
	found.Nameservers = slices.Clone(Defaults)
	return found
}

// unreachable reports whether a server cannot be reached from a container: one
// on loopback, or with IPv6, which containers have not.
func unreachable(server string) bool {
	a, err := netip.ParseAddr(server)
	return err != nil || a.IsLoopback() || a.Is6()
}

// Parse reads resolv.conf(5). The last of "search" and "domain" wins, options
// add up, at most three servers count.
func Parse(text string) Settings {
	var s Settings
	for line := range strings.Lines(text) {
		if i := strings.IndexAny(line, "#;"); i >= 0 {
			line = line[:i]
		}
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch words[0] {
		case "nameserver":
			if len(s.Nameservers) < 3 { // MAXNS
				s.Nameservers = append(s.Nameservers, words[1])
			}
		case "search", "domain":
			s.Search = words[1:]
		case "options":
			s.Options = append(s.Options, words[1:]...)
		}
	}
	return s
}

// Over returns s with what is set in base where s says nothing. A search of "."
// means none at all.
func (s Settings) Over(base Settings) Settings {
	pick := func(a, b []string) []string {
		if len(a) > 0 {
			return a
		}
		return b
	}
	merged := Settings{
		Nameservers: pick(s.Nameservers, base.Nameservers),
		Search:      pick(s.Search, base.Search),
		Options:     pick(s.Options, base.Options),
	}
	if slices.Equal(merged.Search, []string{"."}) {
		merged.Search = nil
	}
	return merged
}
