package launch

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"

	"berth/libcontainer"
	"berth/libcontainer/mount"
	apiv1 "berth/proto/berth/api/v1"
	networkv1 "berth/proto/berth/network/v1"
)

// etcFiles are made for each container and mounted over the image's.
var etcFiles = []string{"hosts", "hostname", "resolv.conf"}

// etc is what goes into them.
func etc(hostname string, spec *apiv1.ContainerSpec, net *networkv1.AttachResponse) map[string][]byte {
	return map[string][]byte{
		"hosts":       hosts(hostname, spec, net),
		"hostname":    []byte(hostname + "\n"),
		"resolv.conf": resolvConf(net.GetDns(), net.GetNamespace().GetKind()),
	}
}

// writeEtc makes the files in dir that are not there yet. They belong to root, as in any
// system, and the container may write them unless its root is read-only.
func writeEtc(dir string, have, content map[string][]byte) error {
	for _, name := range etcFiles {
		if old, ok := have[name]; ok && bytes.Equal(old, content[name]) {
			continue
		}
		if err := writeNew(filepath.Join(dir, name), content[name]); err != nil {
			return fmt.Errorf("write /etc/%s of the container: %w", name, err)
		}
	}
	return nil
}

// writeNew makes a file that everybody may read. One of an earlier run may
// still be mounted in what is left of it, and is not written to.
func writeNew(path string, content []byte) error {
	const flags = os.O_WRONLY | os.O_CREATE | os.O_EXCL
	f, err := os.OpenFile(path, flags, 0o644)
	if errors.Is(err, os.ErrExist) {
		if err := os.Remove(path); err != nil {
			return err
		}
		f, err = os.OpenFile(path, flags, 0o644)
	}
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Chmod(0o644); err != nil { // whatever our umask
		return err
	}
	_, err = f.Write(content)
	return err
}

// mountEtc mounts what the user does not.
func (s *mountSet) mountEtc(dir string, readOnly bool) {
	attr := mount.NoDev
	if readOnly {
		attr |= mount.ReadOnly
	}
	for _, name := range etcFiles {
		if t := "/etc/" + name; !s.has(t) {
			s.put(libcontainer.Mount{Type: "bind", Source: filepath.Join(dir, name), Destination: t, Attr: attr}, nil)
		}
	}
}

const localHosts = "127.0.0.1\tlocalhost\n" +
	"::1\tlocalhost ip6-localhost ip6-loopback\n" +
	"fe00::\tip6-localnet\n" +
	"ff00::\tip6-mcastprefix\n" +
	"ff02::1\tip6-allnodes\n" +
	"ff02::2\tip6-allrouters\n"

func hosts(hostname string, spec *apiv1.ContainerSpec, net *networkv1.AttachResponse) []byte {
	var b bytes.Buffer
	if net.GetNamespace().GetKind() == networkv1.Namespace_KIND_HOST {
		own, err := os.ReadFile("/etc/hosts")
		if err != nil {
			own = []byte(localHosts)
		}
		b.Write(own)
		if !bytes.HasSuffix(own, []byte("\n")) {
			b.WriteByte('\n')
		}
	} else {
		b.WriteString(localHosts)
	}
	for _, e := range net.GetEndpoints() {
		for _, addr := range []string{e.IpAddress, e.Ipv6Address} {
			if a, err := netip.ParseAddr(addr); err == nil {
				fmt.Fprintf(&b, "%s\t%s\n", a, ownNames(hostname, spec.Domainname))
			}
		}
	}
	for _, line := range net.GetDns().GetHosts() {
		b.WriteString(strings.ReplaceAll(line, "\n", " ") + "\n")
	}
	return b.Bytes()
}

func ownNames(hostname, domain string) string {
	if domain != "" {
		return hostname + "." + domain + " " + hostname
	}
	if short, _, dotted := strings.Cut(hostname, "."); dotted {
		return hostname + " " + short
	}
	return hostname
}

// resolvConf is netd's, or the host's where the container has its network.
func resolvConf(dns *networkv1.DnsConfig, kind networkv1.Namespace_Kind) []byte {
	var b bytes.Buffer
	for _, s := range dns.GetNameservers() {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(dns.GetSearch()) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(dns.Search, " "))
	}
	if len(dns.GetOptions()) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(dns.Options, " "))
	}
	if b.Len() == 0 && kind == networkv1.Namespace_KIND_HOST {
		if own, err := os.ReadFile("/etc/resolv.conf"); err == nil {
			return own
		}
	}
	return b.Bytes()
}
