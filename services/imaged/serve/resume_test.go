package serve

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// standsAt is how many bytes of an upload there are.
func (r *rig) standsAt(place string) int {
	r.Helper()
	a := r.do("GET", place, "")
	r.want(a, http.StatusNoContent, "")
	_, last, _ := strings.Cut(a.header.Get("Range"), "-")
	n, err := strconv.Atoi(last)
	r.check(err)
	return n + 1
}

// TestUploadsOutliveRestart: an upload goes on after a restart, for whoever began it and nobody else, and comes to its
// digest, whichever algorithm that is of.
func TestUploadsOutliveRestart(t *testing.T) {
	for _, a := range []digest.Algorithm{digest.SHA256, digest.SHA512} {
		r := newRig(t, Config{Users: "yes", PushUsers: []string{pusher, puller}})
		place := r.do("POST", "/v2/team/app/blobs/uploads/", "").header.Get("Location")
		r.want(r.do("PATCH", place, "01234", "Content-Range", "0-4"), 202, "")
		r.restart()
		r.want(r.as(puller, "PATCH", place, "56789"), 404, uploadUnknown)
		r.want(r.do("PATCH", strings.Replace(place, "team/app", "team/other", 1), "56789"), 404, uploadUnknown)
		r.want(r.do("PATCH", place, "56789", "Content-Range", "0-4"), 416, uploadInvalid)
		r.want(r.do("PATCH", place, "567", "Content-Range", "5-7"), 202, "")
		r.restart()
		if n := r.standsAt(place); n != 8 {
			t.Errorf("the upload stands at %d", n)
		}
		want := a.FromString("0123456789").String()
		r.want(r.do("PUT", place+"?digest="+want, "89", "Content-Range", "8-9"), 201, "")
		if got := r.do("GET", "/v2/team/app/blobs/"+want, ""); got.body != "0123456789" {
			t.Errorf("the blob is %q", got.body)
		}
		r.wantFiles(1, 0, 0)

		// Wrong bytes stay wrong.
		place = r.do("POST", "/v2/team/app/blobs/uploads/", "").header.Get("Location")
		r.want(r.do("PATCH", place, "01234"), 202, "")
		r.restart()
		r.want(r.do("PUT", place+"?digest="+a.FromString("56789").String(), "56789"), 400, digestInvalid)
		r.wantFiles(1, 0, 0)
	}
}

// TestUploadsAfterDamage: what is left of an upload after a power cut is taken up if it can be, else deleted, and keeps
// nobody from serving.
func TestUploadsAfterDamage(t *testing.T) {
	r := newRig(t, anybody())
	var places []string
	for range 4 {
		place := r.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
		r.want(r.do("PATCH", place, "01234"), 202, "")
		places = append(places, place)
	}
	r.close()
	file := func(i int) string { return filepath.Join(r.dir, "upload", filepath.Base(places[i])) }
	r.check(os.Remove(file(0)))
	r.check(os.Remove(file(1) + ".note"))
	r.check(os.Truncate(file(2)+".note", 3))
	r.check(os.WriteFile(file(3), []byte{0, 0, 0, 0, 0}, 0o600))
	r.open()
	for _, place := range places[:3] {
		r.want(r.do("PATCH", place, "56789"), 404, uploadUnknown)
	}
	r.want(r.do("PUT", places[3]+"?digest="+digest.FromString("0123456789").String(), "56789"), 400, digestInvalid)
	r.wantFiles(0, 0, 0)
}

const serveIn = "BERTH_SERVE_TEST_DIR"

// TestF01UploadKilled kills the process that takes an upload, again and again in the middle of a piece. Each time the client asks
// how much there is and goes on behind it, and in the end the blob is what was sent.
func TestF01UploadKilled(t *testing.T) {
	if dir := os.Getenv(serveIn); dir != "" {
		r := newRigIn(t, dir, anybody())
		fmt.Fprintf(os.Stderr, "serving %s\n", r.url)
		select {}
	}
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: unpacking needs root")
	}
	r := &rig{TB: t, dir: t.TempDir(), client: &http.Client{}}
	var child *exec.Cmd
	serve := func() {
		child = exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
		child.Env = append(os.Environ(), serveIn+"="+r.dir)
		child.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := child.StderrPipe()
		r.check(err)
		r.check(child.Start())
		if _, err := fmt.Fscanf(out, "serving %s\n", &r.url); err != nil {
			t.Fatalf("the child does not serve: %v", err)
		}
	}
	kill := func() {
		r.check(child.Process.Kill())
		child.Wait()
	}
	serve()
	defer func() { kill() }()
	blob := make([]byte, 12<<20)
	rand.NewChaCha8([32]byte{1}).Read(blob)
	place := r.do("POST", "/v2/app/blobs/uploads/", "").header.Get("Location")
	at := 0
	for round := range 5 {
		// A piece that never ends: half of what is left comes, and then the process goes.
		conn, err := net.Dial("tcp", r.host())
		r.check(err)
		fmt.Fprintf(conn, "PATCH %s HTTP/1.1\r\nHost: x\r\nAuthorization: Basic YWRhOmNvcnJlY3QgaG9yc2U=\r\nContent-Length: %d\r\n\r\n", place, len(blob)-at)
		_, err = conn.Write(blob[at : at+(len(blob)-at)/2])
		r.check(err)
		file := filepath.Join(r.dir, "upload", filepath.Base(place))
		for began := time.Now(); time.Since(began) < 10*time.Second; time.Sleep(time.Millisecond) {
			if st, err := os.Stat(file); err == nil && int(st.Size()) > at {
				break
			}
		}
		kill()
		conn.Close()
		serve()
		now := r.standsAt(place)
		if now <= at || now >= len(blob) {
			t.Fatalf("round %d: the upload stands at %d, after %d", round, now, at)
		}
		at = now
	}
	d := digest.FromBytes(blob)
	r.want(r.do("PUT", place+"?digest="+d.String(), string(blob[at:]), "Content-Range", fmt.Sprintf("%d-%d", at, len(blob)-1)), 201, "")
	if a := r.do("GET", "/v2/app/blobs/"+d.String(), ""); !bytes.Equal([]byte(a.body), blob) {
		t.Errorf("the blob has %d bytes, or others", len(a.body))
	}
	r.wantFiles(1, 0, 0)
}
