// Package worker unpacks layers in processes of their own, one for each layer.
//
// What a layer's archive holds is a stranger's, in three formats of some depth,
// and unpacking it takes rights over files. So imaged, which keeps the store and
// the registries' credentials, does not do it: it starts the program berth-unpack,
// which shuts itself in with nothing but the directory of that one layer (see
// packages inside and wire), hands it the archive, and waits for what it says.
//
//	imaged:  download ─► hash ─► file ─┄ size so far ┄─┐
//	                               └───── descriptor ──┤
//	berth-unpack:                                      └─► inflate ─► hash ─► unpack
//
// # What imaged believes
//
// The digest of the compressed bytes is imaged's own. What they inflate to, and
// that the tree is what the archive says, is the word of the process: nobody
// else has seen it, and to compute it again would be to do the work twice. One
// that was taken over by its archive could thus lie about its own layer. It
// cannot name, read or change another layer, image, container or file of the
// host, keep running, or talk to anybody; and where its lie is that its layer
// is one the store has, imaged compares the two (package images).
//
// Not for: what imaged itself writes (the archives of commit and save), or the
// outer archive of a load, whose entries are only ever read into memory.
package worker

import (
	"bytes"
	"context"
	_ "crypto/sha512" // an algorithm of Content
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/hashicorp/go-hclog"
	"github.com/opencontainers/go-digest"

	"berth/internal/fault"
	"berth/internal/faultpoint"
	"berth/libcontainer/caps"
	"berth/libcontainer/sandbox"
	"berth/services/imaged/graph"
	"berth/services/imaged/inflate"
	"berth/services/imaged/unpack"
	"berth/services/imaged/worker/wire"
)

// Program is the name of the program; it belongs beside imaged.
const Program = "berth-unpack"

var started = faultpoint.Declare("imaged.unpack-started", "a process was started to unpack a layer, and does")

// Workers start processes that unpack. Their methods may be called from any goroutine.
type Workers struct {
	Path    string // of the program
	Files   unpack.Limits
	Inflate inflate.Limits
	Log     hclog.Logger

	// NoLandlock and NoSeccomp leave a wall out, as kernels do that do not have it.
	NoLandlock, NoSeccomp bool

	told sync.Once
}

// Aside are capabilities that imaged has only to hand them on, and to copy what
// has need of them: they are not effective in it.
var Aside = wire.Aside

// Find gives the path of the program beside the running one, and makes sure that this process may start it.
func Find() (string, error) {
	self, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find own program: %w", err)
	}
	path := filepath.Join(filepath.Dir(self), Program)
	if _, err := os.Stat(path); err != nil {
		return "", fault.FailedPrecondition.Errorf("PROGRAM_MISSING", "%s: it belongs beside %s, which cannot unpack layers without it", err, filepath.Base(self))
	}
	have, err := caps.Current()
	if err != nil {
		return "", err
	}
	if missing := (wire.Caps | wire.Enter) &^ have.Permitted; missing != 0 {
		return "", fault.FailedPrecondition.Errorf("CAPABILITY_MISSING", "unpacking layers takes %s, which this process was not given", missing)
	}
	return path, nil
}

// Stager is the part of a [graph.Driver] that Unpack has need of.
type Stager interface {
	Stage(ctx context.Context, make graph.Maker) (graph.Staged, error)
}

// Unpack stages the layer whose archive r is, compressed or not, and gives the
// digest of the uncompressed archive. It reads r to the end. A Reader that is
// also a [File], or an *os.File of a regular file read from its beginning, is
// read by the process itself.
//
// fault.DataLoss blames the archive; fault.Unavailable says that the process
// was killed, which may go better another time.
func (w *Workers) Unpack(ctx context.Context, d Stager, r io.Reader) (graph.Staged, digest.Digest, error) {
	var diffID digest.Digest
	staged, err := d.Stage(ctx, func(ctx context.Context, dir *os.File, o unpack.Options) (unpack.Result, error) {
		o.Limits = w.Files
		reply, err := w.run(ctx, dir, o, "", r)
		if err != nil {
			return unpack.Result{}, err
		}
		diffID, err = w.accept(reply, digest.SHA256)
		return reply.Result, err
	})
	if err != nil {
		return nil, "", err
	}
	return staged, diffID, nil
}

// errRead ends the staging of a layer that was only read.
var errRead = errors.New("read, and not made")

// Content gives the digest by a of the uncompressed archive that the blob d holds. Layers are known by their sha256, which
// Unpack gives; this is for images that name them by another: it inflates the blob once more, in a process of its own as
// Unpack does.
func (w *Workers) Content(ctx context.Context, s Stager, blobs Blobs, d digest.Digest, a digest.Algorithm) (content digest.Digest, err error) {
	blob, err := blobs.Open(d)
	if err != nil {
		return "", err
	}
	defer blob.Close()
	staged, err := s.Stage(ctx, func(ctx context.Context, dir *os.File, o unpack.Options) (unpack.Result, error) {
		reply, err := w.run(ctx, dir, o, a, blob)
		if err == nil {
			content, err = w.accept(reply, a)
		}
		if err == nil {
			err = errRead // what was staged for it is nothing
		}
		return unpack.Result{}, err
	})
	if errors.Is(err, errRead) {
		return content, nil
	}
	if err == nil {
		staged.Discard()
		err = fault.Internal.Errorf("STAGED_NOTHING", "a layer was staged that was only read")
	}
	return "", err
}

// Blobs is the part of a store that Content has need of.
type Blobs interface {
	Open(d digest.Digest) (*os.File, error)
}

// run has one process do one layer, or with a only compute the digest of its content.
func (w *Workers) run(ctx context.Context, dir *os.File, o unpack.Options, a digest.Algorithm, r io.Reader) (wire.Reply, error) {
	request := wire.Request{Protocol: wire.Protocol, Options: o, Digest: a, Inflate: w.Inflate, NoLandlock: w.NoLandlock, Processors: runtime.GOMAXPROCS(0)}
	if !w.NoSeccomp {
		var err error
		if request.Filter, err = filter(); err != nil {
			return wire.Reply{}, err
		}
	}
	src, err := sourceOf(r)
	if err != nil {
		return wire.Reply{}, err
	}
	defer src.close()
	request.Growing = src.growing
	p, err := w.start(dir, src.archive)
	if err != nil {
		return wire.Reply{}, err
	}
	defer p.end()
	src.started()
	if err := started.Hit(); err != nil {
		return wire.Reply{}, err
	}
	stop := context.AfterFunc(ctx, p.kill)
	defer stop()
	fed := make(chan error, 1)
	go func() {
		err := src.feed(p.stdin, request)
		if err != nil {
			p.kill() // it must not take this for the archive's end
		}
		src.close()
		fed <- err
	}()
	reply, err := p.reply()
	p.end()
	if ctx.Err() != nil {
		return reply, context.Cause(ctx)
	}
	if err == nil && reply.Error == nil {
		return reply, <-fed
	}
	select {
	case ferr := <-fed: // of which err is the echo
		if ferr != nil {
			return reply, ferr
		}
	default: // whoever gives us the archive may take long about it
	}
	if err == nil {
		err = failure(reply.Error)
	}
	return reply, err
}

// accept checks what a process said that may have been taken over.
func (w *Workers) accept(p wire.Reply, a digest.Algorithm) (digest.Digest, error) {
	w.told.Do(func() { w.tell(p.Sandbox) })
	d := digest.Digest(p.DiffID)
	limits := w.Files.OrDefault()
	r := p.Result
	if d.Validate() != nil || d.Algorithm() != a || r.Entries < 0 || r.Entries > limits.Entries || r.Bytes < 0 || r.Bytes > limits.Bytes {
		return "", fault.Internal.Errorf("UNPACK_REPLY", "the process that unpacked it gave an answer that cannot be")
	}
	return d, nil
}

// tell says once what the kernel lacks.
func (w *Workers) tell(s sandbox.State) {
	if w.Log == nil {
		return
	}
	if s.Landlock == 0 {
		w.Log.Warn("unpacking goes without Landlock: needs Linux 5.19 or later with Landlock switched on; chroot and seccomp remain")
	}
	if !s.Seccomp {
		w.Log.Warn("unpacking goes without a filter of system calls: the kernel has no seccomp(2)")
	}
}

// failure makes of what a process says went wrong the error that it had.
func failure(e *wire.Error) error {
	switch {
	case e.Kind == wire.BadArchive && e.Reason != "":
		return blame(&unpack.EntryError{Name: e.Entry, Reason: printable(e.Reason)})
	case e.Kind == wire.BadArchive:
		return blame(&reported{printable(e.Text), unpack.ErrRefused})
	case e.Kind == wire.BadStream:
		return blame(&reported{printable(e.Text), inflate.ErrRefused})
	case e.Errno > 0:
		return &reported{printable(e.Text), syscall.Errno(e.Errno)}
	}
	return errors.New(printable(e.Text))
}

// blame gives errors that the archive is to blame for their kind.
func blame(err error) error { return fault.DataLoss.Errorf("BAD_LAYER", "%w", err) }

// reported is an error with the words that the process had for it.
type reported struct {
	text string
	is   error
}

func (r *reported) Error() string { return r.text }
func (r *reported) Unwrap() error { return r.is }

// printable makes one line of no control characters out of a text that a stranger may have written.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r >= 0x7f && r < 0xa0 {
			return '?'
		}
		return r
	}, strings.ToValidUTF8(text, "?"))
}

// lastMoment is how long a process may take to end that will not answer any more.
const lastMoment = 2 * time.Second

// process is a running berth-unpack.
type process struct {
	cmd    *exec.Cmd
	stdin  io.WriteCloser
	stdout io.ReadCloser
	stderr tail
	once   sync.Once
}

// start starts a process that has dir and archive, and nothing else of ours.
func (w *Workers) start(dir, archive *os.File) (*process, error) {
	p := &process{cmd: exec.Command(w.Path)}
	p.cmd.Args = []string{Program}
	p.cmd.Env = environment
	p.cmd.Dir = "/"
	p.cmd.Stderr = &p.stderr
	p.cmd.WaitDelay = lastMoment                // where no filter kept it from leaving a child behind that has its stderr
	p.cmd.ExtraFiles = []*os.File{dir, archive} // wire.Dir, wire.Archive
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	for _, c := range (wire.Caps | wire.Enter).List() {
		p.cmd.SysProcAttr.AmbientCaps = append(p.cmd.SysProcAttr.AmbientCaps, uintptr(c))
	}
	var err error
	if p.stdin, err = p.cmd.StdinPipe(); err != nil {
		return nil, err
	}
	if p.stdout, err = p.cmd.StdoutPipe(); err != nil {
		return nil, err
	}
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", Program, err)
	}
	return p, nil
}

// environment keeps the Go runtime from what it cannot do once it is shut in:
// interrupting its threads by signals, and watching the control group's files for
// how many processors it may use, which it would keep open. It begins on one
// processor: the fewer threads there are by then, the sooner all are shut in.
var environment = []string{"GODEBUG=asyncpreemptoff=1,containermaxprocs=0,updatemaxprocs=0", "GOMAXPROCS=1"}

func (p *process) kill() { p.cmd.Process.Kill() }

// end makes sure that the process is gone, whatever it was about.
func (p *process) end() {
	p.once.Do(func() {
		p.kill()
		p.stdin.Close()
		p.cmd.Wait()
	})
}

// reply waits for what the process has to say. One that ends without a word is an error.
func (p *process) reply() (wire.Reply, error) {
	reply, err := wire.ReadReply(p.stdout)
	if err == nil {
		return reply, nil
	}
	if !errors.Is(err, io.EOF) {
		return reply, fault.Internal.Errorf("UNPACK_REPLY", "the process that unpacked it gave an answer that makes no sense")
	}
	p.once.Do(func() { // it has closed its end, so it is about to go; why, we want to know
		late := time.AfterFunc(lastMoment, p.kill)
		defer late.Stop()
		p.stdin.Close()
		p.cmd.Wait()
	})
	status := p.cmd.ProcessState.Sys().(syscall.WaitStatus)
	if status.Signaled() {
		return reply, fault.Unavailable.Errorf("UNPACK_KILLED", "the process that unpacked it was killed (%s)", status.Signal()).
			Hint("try again; if the kernel killed it for lack of memory, its log says so")
	}
	return reply, fault.Internal.Errorf("UNPACK_FAILED", "the process that unpacked it failed: %s", p.stderr.words())
}

// tail keeps the first bytes of what a process writes last.
type tail struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

const maxWords = 512

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf.Write(b[:min(len(b), maxWords-t.buf.Len())])
	return len(b), nil
}

func (t *tail) words() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	line, _, _ := strings.Cut(strings.TrimSpace(t.buf.String()), "\n")
	if line == "" {
		return "it did not say why"
	}
	return printable(line)
}
