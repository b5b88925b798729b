package firewall

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// inNamespace runs the rest of the test on a thread in a network namespace of
// its own; the thread dies with the test's goroutine.
func inNamespace(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making a network namespace needs root")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
}

func open(t testing.TB) *Firewall {
	t.Helper()
	f, err := New("berthtest", "bvtest", 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	return f
}

// listing is the ruleset as nft(8), a second opinion, prints it.
func listing(t testing.TB) string {
	t.Helper()
	out, err := exec.Command("nft", "-s", "list", "ruleset").CombinedOutput()
	if err != nil {
		t.Fatalf("nft list ruleset: %v\n%s", err, out)
	}
	return string(out)
}

func sample(n int) Elements {
	e := Elements{Networks: []Network{
		{Bridge: "berth0", Subnet: netip.MustParsePrefix("172.17.0.0/16")},
		{Bridge: "berth1", Subnet: netip.MustParsePrefix("172.18.0.0/16"), Internal: true},
	}}
	for i := range n {
		ip := netip.AddrFrom4([4]byte{172, 17, byte(i >> 8), byte(i)})
		e.Sources = append(e.Sources, Source{fmt.Sprintf("bvtest%08x", i), net.HardwareAddr{2, 0x42, 172, 17, byte(i >> 8), byte(i)}, ip})
		e.Publications = append(e.Publications,
			Publication{HostPort: uint16(1000 + i), Protocol: TCP, To: netip.AddrPortFrom(ip, 80)},
			Publication{HostIP: netip.MustParseAddr("127.0.0.1"), HostPort: uint16(1000 + i), Protocol: UDP, To: netip.AddrPortFrom(ip, 53)})
	}
	return e
}

// The same state is the same ruleset, however it came about.
func TestF42RebuildIsIdentical(t *testing.T) {
	inNamespace(t)
	first := open(t)
	if err := first.Rebuild(); err != nil {
		t.Fatal(err)
	}
	if err := first.Update(sample(1000), Elements{}); err != nil {
		t.Fatal(err)
	}
	grown := listing(t)
	if !strings.Contains(grown, `elements = { "berth0",`) {
		t.Error("nft(8) cannot read the names of bridges")
	}

	again := open(t)
	again.Replace(sample(1000))
	if err := again.Rebuild(); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); got != grown {
		t.Errorf("a rebuild changed the ruleset\nbefore:\n%s\nafter:\n%s", head(grown), head(got))
	}
	if err := again.startOver(); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); got != grown {
		t.Errorf("starting over changed the ruleset\nbefore:\n%s\nafter:\n%s", head(grown), head(got))
	}
	t.Log(head(grown))
}

// Whatever was bent is straight after the next change.
func TestRepair(t *testing.T) {
	inNamespace(t)
	f := open(t)
	f.Replace(sample(3))
	if err := f.Rebuild(); err != nil {
		t.Fatal(err)
	}
	good := listing(t)
	for _, damage := range []string{
		"flush ruleset",
		"flush table ip berthtest",
		"delete element ip berthtest published_any { tcp . 1000 }",
		"add element ip berthtest published_any { tcp . 4711 : 10.0.0.1 . 22 }",
		"delete table bridge berthtest; add table bridge berthtest; add map bridge berthtest sources { type ipv4_addr : ipv4_addr; }",
	} {
		if out, err := exec.Command("nft", damage).CombinedOutput(); err != nil {
			t.Fatalf("nft %q: %v\n%s", damage, err, out)
		}
		if listing(t) == good {
			t.Fatalf("%q did no damage", damage)
		}
		if err := f.Rebuild(); err != nil {
			t.Errorf("rebuild after %q: %v", damage, err)
		}
		if got := listing(t); got != good {
			t.Errorf("after %q and a rebuild:\n%s\nwant\n%s", damage, got, good)
		}
	}
}

// Old kernels are not told of which parts a key consists.
// Our own changes are no news; everybody else's are.
func TestOwnChangesAreNoNews(t *testing.T) {
	inNamespace(t)
	f := open(t)
	f.Replace(sample(1))
	if err := f.Rebuild(); err != nil {
		t.Fatal(err)
	}
	events, err := netlink.Dial(familyNetfilter, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer events.Close()
	if err := f.ignoreOwn(events); err != nil {
		t.Fatal(err)
	}
	if err := events.JoinGroup(groupNFTables); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(sample(20), Elements{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Rebuild(); err != nil {
		t.Fatal(err)
	}
	events.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	if got, err := events.Receive(); err == nil {
		t.Errorf("news of our own changes: %d messages, the first of type %#x", len(got), got[0].Header.Type)
	}
	if out, err := exec.Command("nft", "flush chain ip berthtest forward").CombinedOutput(); err != nil {
		t.Fatalf("nft: %v: %s", err, out)
	}
	events.SetReadDeadline(time.Now().Add(5 * time.Second))
	if got, err := events.Receive(); err != nil || !has(got, deleteRule) {
		t.Errorf("news of a flushed chain: %v, %v", got, err)
	}
}

func TestPlainConcat(t *testing.T) {
	inNamespace(t)
	f := open(t)
	if !f.plainConcat() || f.plainConcat() {
		t.Error("plainConcat does not report its change")
	}
	f.Replace(sample(3))
	if err := f.Rebuild(); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(Elements{}, sample(3)); err != nil {
		t.Fatal(err)
	}
}

func TestUpdateRemoves(t *testing.T) {
	inNamespace(t)
	f := open(t)
	if err := f.Rebuild(); err != nil {
		t.Fatal(err)
	}
	empty := listing(t)
	all := sample(5)
	if err := f.Update(all, Elements{}); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(all, Elements{}); err != nil {
		t.Errorf("adding what is there: %v", err)
	}
	if err := f.Update(Elements{}, all); err != nil {
		t.Fatal(err)
	}
	if err := f.Update(Elements{}, all); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
	if got := listing(t); got != empty {
		t.Errorf("elements left behind:\n%s", got)
	}
	if err := f.Remove(); err != nil {
		t.Fatal(err)
	}
	if got := listing(t); got != "" {
		t.Errorf("after Remove:\n%s", got)
	}
	if err := f.Update(all, Elements{}); err != nil || listing(t) != "" {
		t.Errorf("an update brought the tables back (%v):\n%s", err, listing(t))
	}
}

func head(s string) string { return s[:min(len(s), 2000)] }

func TestInterval(t *testing.T) {
	for prefix, behind := range map[string]string{
		"172.17.0.0/16":  "172.18.0.0",
		"10.255.0.0/16":  "11.0.0.0",
		"192.168.0.8/29": "192.168.0.16",
		"10.0.0.255/32":  "10.0.1.0",
	} {
		es := interval(netip.MustParsePrefix(prefix))
		if got, _ := netip.AddrFromSlice(es[1].Key); got.String() != behind {
			t.Errorf("behind %s comes %s, want %s", prefix, got, behind)
		}
	}
}

func BenchmarkPublish(b *testing.B) {
	for _, n := range []int{0, 5000} {
		b.Run(fmt.Sprintf("beside=%d", n), func(b *testing.B) {
			inNamespace(b)
			f := open(b)
			f.Replace(sample(n))
			if err := f.Rebuild(); err != nil {
				b.Fatal(err)
			}
			p := Elements{Publications: []Publication{{HostPort: 80, Protocol: TCP, To: netip.MustParseAddrPort("172.17.0.2:80")}}}
			b.Run("add", func(b *testing.B) {
				for b.Loop() {
					if err := f.Update(p, Elements{}); err != nil {
						b.Fatal(err)
					}
					b.StopTimer()
					f.Update(Elements{}, p)
					b.StartTimer()
				}
			})
			b.Run("remove", func(b *testing.B) {
				for b.Loop() {
					b.StopTimer()
					f.Update(p, Elements{})
					b.StartTimer()
					if err := f.Update(Elements{}, p); err != nil {
						b.Fatal(err)
					}
				}
			})
		})
	}
}
