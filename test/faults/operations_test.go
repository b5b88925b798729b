//go:build e2e

package faults

import (
	"strings"
	"testing"
	"time"

	"berth/test/harness"
	registrytest "berth/test/registry"
)

const (
	subject  = "subject" // name of the container that operations work on
	port     = 18500     // it publishes
	made     = "made:1"  // image that import makes
	page     = "hello from berth"
	patience = 15 * time.Second
)

// world is an engine with what operations need: an image, one in a registry, a tar, and bystanders that nothing may
// disturb.
type world struct {
	t      *testing.T
	e      *harness.Engine
	b      backends
	image  string
	remote string // reference of an image that is only in the registry
	pushed string // reference of an image that is nowhere, in that registry
	copied string // and in another
	tar    string
	// archive is where the image of tar is saved.
	archive string
	pids    string // of the bystanders
	store   []string
}

var bystanders = map[string]int{"bystander1": 18401, "bystander2": 18402}

func newWorld(t *testing.T, e *harness.Engine) *world {
	t.Helper()
	w := &world{t: t, e: e, b: dialBackends(t, e), image: e.Busybox(t), tar: otherTar(t, "imported", 1<<16), archive: t.TempDir() + "/saved.tar"}
	reg := registrytest.Start(t, registrytest.Options{})
	w.remote, w.pushed, w.copied = reg.Ref("remote:1"), reg.Ref("pushed:1"), registrytest.Start(t, registrytest.Options{}).Ref("copied:1")
	e.Berth(t, "import", otherTar(t, "pulled", 1<<16), w.remote)
	e.Berth(t, "push", "-q", w.remote)
	e.Berth(t, "rmi", w.remote)
	e.Berth(t, "run", "-d", "--name", "bystander1", "-p", "18401:80", w.image, "httpd", "-f", "-h", "/www")
	e.Berth(t, "run", "-d", "--rm", "--name", "bystander2", "-p", "18402:80", w.image, "httpd", "-f", "-h", "/www")
	for name, port := range bystanders {
		harness.Eventually(t, 5*time.Second, func() bool { return get(port) == nil }, "%s answers", name)
	}
	w.pids = w.bystanderPids()
	time.Sleep(50 * time.Millisecond)
	w.store = settledStore(t, e)
	return w
}

func (w *world) bystanderPids() string {
	return w.e.Try("inspect", "-f", "{{.State.Status}} {{.State.Pid}}", "bystander1", "bystander2").Out
}

// undisturbed checks the bystanders, and that no part of a container is left without it.
func (w *world) undisturbed() {
	w.t.Helper()
	for name, port := range bystanders {
		if err := get(port); err != nil {
			w.t.Errorf("%s on port %d: %v", name, port, err)
		}
	}
	if now := w.bystanderPids(); now != w.pids {
		w.t.Errorf("bystanders are %q, were %q", now, w.pids)
	}
	releaseStandby(w.e)
	var found []string
	for deadline := time.Now().Add(5 * time.Second); ; time.Sleep(50 * time.Millisecond) {
		if found = w.b.orphans(); len(found) == 0 {
			break
		}
		if time.Now().After(deadline) {
			w.t.Errorf("not reconciled: %s", strings.Join(found, "; "))
			break
		}
	}
	sameStore(w.t, w.e, w.store)
}

// operation is something a user does. After it, whatever happened meanwhile, check finds it either done or undone,
// never half, removes what it made, and says which. ok is whether the user was told that it is done.
type operation struct {
	prepare func(w *world)
	args    func(w *world) []string
	check   func(w *world, r harness.Result) (done bool)
}

var operations = map[string]operation{
	"pull": {
		args:  func(w *world) []string { return []string{"pull", "-q", w.remote} },
		check: func(w *world, r harness.Result) bool { return w.imageThere(w.remote, "pulled") },
	},
	"import": {
		args:  func(w *world) []string { return []string{"import", w.tar, made} },
		check: func(w *world, r harness.Result) bool { return w.imageThere(made, "imported") },
	},
	"load": {
		prepare: func(w *world) {
			w.e.Berth(w.t, "import", w.tar, made)
			w.e.Berth(w.t, "save", "-q", "-o", w.archive, made)
			w.e.Berth(w.t, "rmi", made)
		},
		args:  func(w *world) []string { return []string{"load", "-q", "-i", w.archive} },
		check: func(w *world, r harness.Result) bool { return w.imageThere(made, "imported") },
	},
	"push": {
		prepare: func(w *world) { w.e.Berth(w.t, "import", w.tar, w.pushed) },
		args:    func(w *world) []string { return []string{"push", "-q", w.pushed} },
		check: func(w *world, r harness.Result) bool {
			if !w.imageThere(w.pushed, "imported") {
				w.t.Error("an image that was being pushed is gone")
			}
			if w.e.Try("pull", "-q", w.pushed).Code != 0 {
				return false
			}
			if !w.imageThere(w.pushed, "imported") {
				w.t.Error("an image that was pulled is not there")
			}
			w.e.Berth(w.t, "registry", "rm", w.pushed)
			return true
		},
	},
	"image copy": {
		args: func(w *world) []string { return []string{"image", "copy", "-q", w.remote, w.copied} },
		check: func(w *world, r harness.Result) bool {
			if w.e.Try("pull", "-q", w.copied).Code != 0 {
				return false
			}
			if !w.imageThere(w.copied, "pulled") {
				w.t.Error("an image that was copied is not there")
			}
			w.e.Berth(w.t, "registry", "rm", w.copied)
			return true
		},
	},
	"commit": {
		prepare: func(w *world) {
			w.e.Berth(w.t, w.serve("run", "-d")...)
			w.e.Berth(w.t, "exec", subject, "sh", "-c", "echo committed > /mark; head -c 65536 /dev/urandom > /noise")
		},
		args: func(*world) []string { return []string{"commit", subject, made} },
		check: func(w *world, r harness.Result) bool {
			done := w.imageThere(made, "committed")
			if !w.container("running") {
				w.t.Error("the container of a commit does not run any more")
			}
			return done
		},
	},
	"image prune": {
		prepare: func(w *world) { w.e.Berth(w.t, "import", w.tar, made) },
		args:    func(*world) []string { return []string{"image", "prune", "-a", "-f"} },
		check:   func(w *world, r harness.Result) bool { return !w.imageThere(made, "imported") },
	},
	"rmi": {
		prepare: func(w *world) { w.e.Berth(w.t, "import", w.tar, made) },
		args:    func(w *world) []string { return []string{"rmi", made} },
		check:   func(w *world, r harness.Result) bool { return !w.imageThere(made, "imported") },
	},
	"run -d": {
		args:  func(w *world) []string { return w.serve("run", "-d") },
		check: func(w *world, r harness.Result) bool { return w.container("running") },
	},
	// As one before it, so that its container was built ahead.
	"run from standby": {
		args: func(w *world) []string {
			w.e.Berth(w.t, "run", "-d", "--name", "earlier", w.image, "sleep", "1000")
			time.Sleep(150 * time.Millisecond)
			return w.serve("run", "-d")
		},
		check: func(w *world, r harness.Result) bool {
			w.e.Berth(w.t, "rm", "-f", "earlier")
			return w.container("running")
		},
	},
	// Of an unusual shape, so that no process made in advance fits.
	"run --uts host": {
		args:  func(w *world) []string { return w.serve("run", "-d", "--uts", "host") },
		check: func(w *world, r harness.Result) bool { return w.container("running") },
	},
	"run --rm": {
		args: func(w *world) []string {
			return []string{"run", "--rm", "--name", subject, "-p", "18500:80", w.image, "cat", "/www/index.html"}
		},
		check: func(w *world, r harness.Result) bool {
			if r.Code == 0 && r.Out != page+"\n" {
				w.t.Errorf("run --rm printed %q", r.Out)
			}
			var s string
			for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
				if s = status(w.t, w.e, subject); s == "absent" && closed(port) {
					return r.Code == 0 // with or without the output: nothing is left
				}
			}
			w.t.Errorf("the container of run --rm is %s, its port is closed: %v", s, closed(port))
			w.e.Try("rm", "-f", subject)
			return false
		},
	},
	"start": {
		prepare: func(w *world) { w.e.Berth(w.t, w.serve("create")...) },
		args:    func(*world) []string { return []string{"start", subject} },
		check:   func(w *world, r harness.Result) bool { return w.container("running") },
	},
	"stop": {
		prepare: func(w *world) { w.e.Berth(w.t, w.serve("run", "-d")...) },
		args:    func(*world) []string { return []string{"stop", "-t", "0", subject} },
		check:   func(w *world, r harness.Result) bool { return w.container("exited") },
	},
	"rm": {
		prepare: func(w *world) {
			w.e.Berth(w.t, w.serve("run", "-d")...)
			w.e.Berth(w.t, "stop", "-t", "0", subject)
		},
		args:  func(*world) []string { return []string{"rm", subject} },
		check: func(w *world, r harness.Result) bool { return w.container("absent") },
	},
	"rm -f": {
		prepare: func(w *world) { w.e.Berth(w.t, w.serve("run", "-d")...) },
		args:    func(*world) []string { return []string{"rm", "-f", subject} },
		check:   func(w *world, r harness.Result) bool { return w.container("absent") },
	},
	"exec": {
		prepare: func(w *world) { w.e.Berth(w.t, w.serve("run", "-d")...) },
		args:    func(*world) []string { return []string{"exec", subject, "cat", "/www/index.html"} },
		check: func(w *world, r harness.Result) bool {
			if r.Code == 0 && r.Out != page+"\n" {
				w.t.Errorf("exec printed %q", r.Out)
			}
			if !w.container("running") {
				w.t.Error("the container of an exec does not run any more")
			}
			return r.Code == 0
		},
	},
	"network create": {
		args: func(*world) []string { return []string{"network", "create", subject} },
		check: func(w *world, r harness.Result) bool {
			there := w.e.Try("network", "inspect", subject).Code == 0
			if there {
				if out := w.e.Berth(w.t, "run", "--rm", "--network", subject, w.image, "echo", "on it"); out != "on it" {
					w.t.Errorf("a container on the network printed %q", out)
				}
				w.e.Berth(w.t, "network", "rm", subject)
			}
			return there
		},
	},
}

func (w *world) serve(verb ...string) []string {
	return append(verb, "--name", subject, "-p", "18500:80", w.image, "httpd", "-f", "-h", "/www")
}

// imageThere says whether an image is there; one that is must be whole. It is removed.
func (w *world) imageThere(name, mark string) bool {
	w.t.Helper()
	r := w.e.Try("image", "inspect", name)
	if r.Code != 0 {
		if !strings.Contains(r.Err, "error: no ") {
			w.t.Errorf("image inspect: %s", r.Err)
		}
		return false
	}
	if r := w.e.Try("run", "--rm", name, "cat", "/mark"); r.Out != mark+"\n" {
		w.t.Errorf("image %s is there but not whole: %q, %s", name, r.Out, r.Err)
	}
	w.e.Berth(w.t, "rmi", name)
	return true
}

// container says whether the subject is in the wanted state. Its port answers when it runs, and is free otherwise. The
// subject is removed.
func (w *world) container(wanted string) bool {
	w.t.Helper()
	var s string
	var err error
	for deadline := time.Now().Add(5 * time.Second); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		s = status(w.t, w.e, subject)
		if s == "running" {
			if err = get(port); err == nil {
				break
			}
		} else if s == "created" || s == "exited" || s == "absent" {
			if closed(port) {
				err = nil
				break
			}
		}
	}
	switch {
	case err != nil:
		w.t.Errorf("the container runs, its port does not answer: %v", err)
	case s != "running" && !closed(port):
		w.t.Errorf("the container is %s, its port still answers", s)
	}
	if s != "absent" {
		if r := w.e.Try("rm", "-f", subject); r.Code != 0 {
			w.t.Errorf("rm -f of a container that is %s: %s", s, r.Err)
		}
		if s := status(w.t, w.e, subject); s != "absent" {
			w.t.Errorf("after rm -f the container is %s", s)
		}
	}
	return s == wanted
}
