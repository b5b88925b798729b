//go:build e2e

package faults

import (
	"archive/tar"
	"bytes"
	"context"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	execv1 "berth/proto/berth/exec/v1"
	imagev1 "berth/proto/berth/image/v1"
	networkv1 "berth/proto/berth/network/v1"
	"berth/test/harness"
)

func TestMain(m *testing.M) {
	// Tests that run side by side mostly wait: for a supervisor's pause, for a timeout.
	flag.Parse()
	flag.Set("test.parallel", "6")
	harness.Main(m)
}

// everyDriver runs a test of what happens to images with each graph driver that makes layers of its own kind.
func everyDriver(t *testing.T, test func(t *testing.T, driver string)) {
	for _, driver := range []string{"overlay", "erofs"} {
		t.Run(driver, func(t *testing.T) { test(t, driver) })
	}
}

// get asks a published port for the page every test image has. It opens its socket in the calling thread's network
// namespace, which http.Transport would not.
func get(port int) error {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 2*time.Second)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(2 * time.Second))
	if _, err := io.WriteString(c, "GET / HTTP/1.0\r\n\r\n"); err != nil {
		return err
	}
	b, err := io.ReadAll(c)
	if err != nil {
		return err
	}
	if !bytes.HasSuffix(b, []byte("hello from berth\n")) {
		return fmt.Errorf("the answer is %q", b)
	}
	return nil
}

// closed reports whether nothing answers on a port.
func closed(port int) bool {
	c, err := net.DialTimeout("tcp", fmt.Sprintf("127.0.0.1:%d", port), 2*time.Second)
	if err == nil {
		c.Close()
	}
	return err != nil
}

// otherTar is a root file system unlike BusyboxTar's: further files, so that nothing of it is shared.
func otherTar(t testing.TB, mark string, extra int) string {
	t.Helper()
	base, err := os.ReadFile(harness.BusyboxTar(t))
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), mark+".tar")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	w := tar.NewWriter(f)
	body := []byte(mark + "\n")
	w.WriteHeader(&tar.Header{Name: "mark", Mode: 0o644, Size: int64(len(body))})
	w.Write(body)
	// Bytes that do not compress, so that a pull of them takes its time.
	noise := make([]byte, extra)
	state := uint64(len(mark))*2654435761 + 88172645463325252
	for i := range noise {
		state ^= state << 13
		state ^= state >> 7
		state ^= state << 17
		noise[i] = byte(state)
	}
	w.WriteHeader(&tar.Header{Name: "noise", Mode: 0o644, Size: int64(len(noise))})
	w.Write(noise)
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Write(base); err != nil {
		t.Fatal(err)
	}
	return path
}

// status is a container's state as inspect tells it, "absent" when there is no such container.
func status(t testing.TB, e *harness.Engine, name string) string {
	t.Helper()
	r := e.Try("inspect", "-f", "{{.State.Status}}", name)
	switch {
	case r.Code == 0:
		return strings.TrimSpace(r.Out)
	case strings.Contains(r.Err, "error: no "):
		return "absent"
	}
	t.Errorf("inspect %s: exit %d: %s", name, r.Code, r.Err)
	return "unknown"
}

// backends are connections to the daemons behind apid, for comparing what they have.
type backends struct {
	rootfs    imagev1.RootfsServiceClient
	endpoints networkv1.EndpointServiceClient
	launch    execv1.LaunchServiceClient
}

func dialBackends(t testing.TB, e *harness.Engine) backends {
	t.Helper()
	dial := func(name string) *grpc.ClientConn {
		c, err := grpc.NewClient("unix://"+e.Run+"/engine/"+name+".sock", grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	return backends{
		imagev1.NewRootfsServiceClient(dial("imaged")),
		networkv1.NewEndpointServiceClient(dial("netd")),
		execv1.NewLaunchServiceClient(dial("execd")),
	}
}

// orphans are the parts of containers that no container has, and containers that lack a part.
func (b backends) orphans() (found []string) {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	known, err := b.launch.ListIds(ctx, new(execv1.ListIdsRequest), grpc.WaitForReady(true))
	if err != nil {
		return []string{"execd: " + err.Error()}
	}
	has := map[string]bool{}
	for _, c := range known.Entries {
		has[c.Id] = true
	}
	rootfs, err := b.rootfs.List(ctx, new(imagev1.ListRequest), grpc.WaitForReady(true))
	if err != nil {
		return []string{"imaged: " + err.Error()}
	}
	rooted := map[string]bool{}
	for _, r := range rootfs.Rootfs {
		rooted[r.ContainerId] = true
		if !has[r.ContainerId] {
			found = append(found, "root file system of no container "+r.ContainerId)
		}
	}
	endpoints, err := b.endpoints.List(ctx, new(networkv1.ListRequest), grpc.WaitForReady(true))
	if err != nil {
		return []string{"netd: " + err.Error()}
	}
	for _, p := range endpoints.Endpoints {
		if !has[p.ContainerId] {
			found = append(found, "endpoint of no container "+p.ContainerId)
		}
	}
	for id := range has {
		if !rooted[id] {
			found = append(found, "container without root file system "+id)
		}
	}
	return found
}

// storeFiles are the blobs and layers that imaged keeps, with what is being made and deleted.
func storeFiles(e *harness.Engine) []string {
	var all []string
	for _, pattern := range []string{"blobs/*/*", "l/*", "le/*", "lc/*", "staging/*", "trash/*", "rw/*"} {
		files, _ := filepath.Glob(filepath.Join(e.Root, "imaged", pattern))
		all = append(all, files...)
	}
	sort.Strings(all)
	return all
}

// releaseStandby has the engine release what it keeps at hand for a next run: it does so for whoever counts.
func releaseStandby(e *harness.Engine) { e.Try("system", "df") }

// settledStore is storeFiles once nothing stands by or waits for deletion.
func settledStore(t testing.TB, e *harness.Engine) []string {
	t.Helper()
	releaseStandby(e)
	harness.Eventually(t, 5*time.Second, func() bool {
		waiting, _ := filepath.Glob(filepath.Join(e.Root, "imaged", "trash", "*"))
		return len(waiting) == 0
	}, "the trash is empty")
	return storeFiles(e)
}

// sameStore waits until the store holds exactly what it held.
func sameStore(t testing.TB, e *harness.Engine, before []string) {
	t.Helper()
	releaseStandby(e)
	var now []string
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		if now = storeFiles(e); strings.Join(now, "\n") == strings.Join(before, "\n") {
			return
		}
	}
	was := map[string]bool{}
	for _, f := range before {
		was[f] = true
	}
	for _, f := range now {
		if !was[f] {
			t.Errorf("left in the store: %s", f)
		}
		delete(was, f)
	}
	for f := range was {
		t.Errorf("gone from the store: %s", f)
	}
}

func writeFile(t testing.TB, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}
