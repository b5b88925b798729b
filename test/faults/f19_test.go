//go:build e2e

package faults

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	apiv1 "berth/proto/berth/api/v1"
	"berth/test/harness"
	registrytest "berth/test/registry"
)

// TestF19PullGoesOn interrupts a pull in each way there is; the next one fetches only what is missing.
func TestF19PullGoesOn(t *testing.T) {
	e := harness.New(t)
	reg := registrytest.Start(t, registrytest.Options{})
	ref := reg.Ref("app:1")
	// Larger than what sockets buffer, which comes even when the registry is gone.
	dir := t.TempDir()
	harness.Sh(t, "sh", "-c", "cp "+harness.BusyboxTar(t)+" "+dir+"/fs.tar && head -c 24000000 /dev/urandom >"+dir+"/noise && tar -C "+dir+" -rf "+dir+"/fs.tar noise")
	e.Berth(t, "import", dir+"/fs.tar", ref)
	e.Berth(t, "push", "-q", ref)
	e.Berth(t, "rmi", ref)

	for name, interrupt := range map[string]func(*testing.T){
		"imaged is killed": func(t *testing.T) { e.Kill(t, "imaged") },
		"unpacking is killed": func(t *testing.T) {
			pids := e.Children("imaged", "berth-unpack")
			if len(pids) == 0 {
				t.Fatal("nobody unpacks")
			}
			for _, pid := range pids {
				if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
					t.Fatal(err)
				}
			}
		},
		"job is cancelled": func(t *testing.T) {
			id := strings.Fields(e.Berth(t, "jobs", "--format", "{{.ID}} {{.State}}"))[0]
			e.Berth(t, "jobs", "cancel", id)
		},
		"registry goes away": func(t *testing.T) {
			if err := syscall.Kill(reg.Pid(), syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
		},
		"everything is killed": func(t *testing.T) {
			e.KillDaemons(t)
			if err := e.Up(); err != nil {
				t.Fatal(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			e.Berth(t, "registry", "limits", "--bandwidth", "150k")
			pull := e.Command("pull", "-q", ref)
			var says strings.Builder
			pull.Stderr = &says
			if err := pull.Start(); err != nil {
				t.Fatal(err)
			}
			harness.Eventually(t, 20*time.Second, func() bool { return kept(e) > 200<<10 }, "a part has come")
			interrupt(t)
			if err := pull.Wait(); err == nil {
				t.Fatal("the interrupted pull succeeded")
			}
			harness.Eventually(t, 2*time.Second, func() bool { return len(e.Children("imaged", "berth-unpack")) == 0 }, "nobody unpacks any more")
			if name == "unpacking is killed" && !(strings.Contains(says.String(), "error: layer ") && strings.Contains(says.String(), "killed")) {
				t.Errorf("the user is told %q, not which layer it was and that it was killed", says.String())
			}
			reg.Restart()
			e.Ready(t)
			e.Berth(t, "registry", "limits", "--bandwidth", "none")
			before := kept(e)
			if before < 200<<10 {
				t.Fatalf("%d bytes are kept", before)
			}
			size, fetched := pullCounting(t, e, ref)
			if fetched > size-before+1 || fetched <= 0 {
				t.Errorf("%d bytes were fetched, of %d there were %d", fetched, size, before)
			}
			if kept(e) != 0 {
				t.Errorf("%d bytes are still kept", kept(e))
			}
			if out := e.Berth(t, "run", "--rm", ref, "cat", "/www/index.html"); out != "hello from berth" {
				t.Errorf("the image says %q", out)
			}
			e.Berth(t, "rmi", ref)
		})
	}
}

// kept is how much downloads that broke off have left.
func kept(e *harness.Engine) (n int64) {
	all, _ := filepath.Glob(filepath.Join(e.Root, "imaged/partial/*"))
	for _, path := range all {
		if st, err := os.Stat(path); err == nil {
			n += st.Size()
		}
	}
	return n
}

// pullCounting pulls and gives the size of the image's layers and how much of them was fetched.
func pullCounting(t *testing.T, e *harness.Engine, ref string) (size, fetched int64) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	stream, err := apiv1.NewImageServiceClient(e.Dial(t)).Pull(ctx, &apiv1.ImageServicePullRequest{Reference: ref})
	if err != nil {
		t.Fatal(err)
	}
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return size, fetched
		}
		if err != nil {
			t.Fatal(err)
		}
		size = max(size, m.GetProgress().GetTotalBytes())
		if r := m.GetResult(); r != nil {
			fetched = r.DownloadedBytes
		}
	}
}
