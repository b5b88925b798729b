package libcontainer

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"berth/libcontainer/initproc"
	"berth/libcontainer/mount"
)

// imageOf makes an EROFS image of the tree at root.
func imageOf(t *testing.T, root, path string) string {
	t.Helper()
	if _, err := exec.LookPath("mkfs.erofs"); err != nil {
		t.Skip("SKIPPED: needs erofs-utils")
	}
	if out, err := exec.Command("mkfs.erofs", path, root).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	return path
}

// needImages skips where images cannot be mounted in any way.
func needImages(t *testing.T) {
	t.Helper()
	if fs, err := unix.Fsopen("erofs", unix.FSOPEN_CLOEXEC); err != nil {
		t.Skip("SKIPPED: needs EROFS: ", err)
	} else {
		unix.Close(fs)
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skip("SKIPPED: needs loop devices: ", err)
	}
}

// imageWays are the kernels that a test of images pretends to run on.
var imageWays = []struct {
	name  string
	force initproc.Force
}{
	{"as it can", 0},
	{"no mounts of files", initproc.ForceLoop},
	{"no detached layers", initproc.ForceStaged},
	{"mount(2)", initproc.ForceStaged | initproc.ForceMount},
}

// everyImageWay runs a test with each way to mount images, and sees to it that no
// loop device stays.
func everyImageWay(t *testing.T, test func(t *testing.T, l *Launcher)) {
	for _, way := range imageWays {
		t.Run(way.name, func(t *testing.T) {
			t.Cleanup(func() { noLoops(t, filepath.Dir(t.TempDir())) })
			l := newLauncher(t)
			l.force = way.force
			test(t, l)
		})
	}
}

// onLoops are the loop devices that show files below dir.
func onLoops(dir string) (found []string) {
	all, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, file := range all {
		if b, err := os.ReadFile(file); err == nil && strings.HasPrefix(string(b), dir+"/") {
			found = append(found, file+": "+strings.TrimSpace(string(b)))
		}
	}
	return found
}

func noLoops(t *testing.T, dir string) {
	t.Helper()
	for began := time.Now(); len(onLoops(dir)) > 0; time.Sleep(5 * time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatalf("loop devices stay: %v", onLoops(dir))
		}
	}
}

// imageRoot is a root of two images: one with busybox, and one on top that adds
// /added and hides /etc/group.
func imageRoot(t *testing.T) Root {
	t.Helper()
	needImages(t)
	base, dir := busybox(t), t.TempDir()
	must(t, os.Chmod(dir, 0o755))
	top := filepath.Join(dir, "top")
	must(t, os.MkdirAll(filepath.Join(top, "etc"), 0o755))
	must(t, os.WriteFile(filepath.Join(top, "added"), []byte("top"), 0o644))
	must(t, unix.Mknod(filepath.Join(top, "etc/group"), unix.S_IFCHR, 0))
	r := Root{Images: true, Upper: filepath.Join(dir, "upper"), Work: filepath.Join(dir, "work"), Options: []string{"userxattr"}, Attr: mount.NoDev}
	r.Lower = []string{imageOf(t, top, filepath.Join(dir, "1")), imageOf(t, base, filepath.Join(dir, "0"))}
	for _, d := range []string{r.Upper, r.Work} {
		must(t, os.Mkdir(d, 0o755))
	}
	return r
}

func TestImages(t *testing.T) {
	everyImageWay(t, func(t *testing.T, l *Launcher) {
		c := config("", "cat /added; test -e /etc/group || echo hidden; echo more >> /added; mkdir /new; cat /added; stat -c %d / /added /bin/busybox | sort -u | wc -l")
		c.Root = imageRoot(t)
		before, err := os.ReadFile("/proc/self/mountinfo")
		must(t, err)
		if got := output(t, l, c, IO{}); got != "tophidden\ntopmore\n1" {
			t.Errorf("got %q", got)
		}
		if b, err := os.ReadFile(filepath.Join(c.Root.Upper, "added")); string(b) != "topmore\n" {
			t.Errorf("the upper directory has %q, %v", b, err)
		}
		if after, _ := os.ReadFile("/proc/self/mountinfo"); string(before) != string(after) {
			t.Error("mounts of the host changed")
		}
		c.Command.Args = []string{"sh", "-c", "cat /added; test -d /new && touch /x 2>&1 | head -c 0"}
		if got := output(t, l, c, IO{}); got != "topmore" {
			t.Errorf("the second time: %q", got)
		}
	})
}

// TestImageOfANewerKernel: an image whose blocks are smaller than this kernel takes is told from one that is refused for
// another reason, here a feature that no kernel has. The kernel says that it is 2.6 where it is asked to (personality(2)).
func TestImageOfANewerKernel(t *testing.T) {
	needImages(t)
	t.Cleanup(func() { noLoops(t, filepath.Dir(t.TempDir())) })
	image := make([]byte, 8192)
	super := image[1024:]
	binary.LittleEndian.PutUint32(super, 0xE0F5E1E2)
	super[12] = 9 // bits of 512
	binary.LittleEndian.PutUint32(super[80:], 1<<31)
	path := filepath.Join(t.TempDir(), "image")
	must(t, os.WriteFile(path, image, 0o600))
	mountIt := func() error {
		_, _, err := newImages().take([]string{path}, true)
		return err
	}

	runtime.LockOSThread() // never unlocked: the thread ends with its personality
	if err := mountIt(); smallBlocks() && (!errors.Is(err, unix.EINVAL) || errors.Is(err, ErrUnsupported)) {
		t.Errorf("with an unknown feature: %v", err)
	}
	const uname26 = 0x0020000
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, uname26, 0, 0); errno != 0 {
		t.Fatal(errno)
	}
	if err := mountIt(); !errors.Is(err, ErrUnsupported) || !strings.Contains(err.Error(), "blocks of 512 bytes") {
		t.Errorf("on an old kernel: %v", err)
	}
}

func TestImagesReadOnly(t *testing.T) {
	everyImageWay(t, func(t *testing.T, l *Launcher) {
		c := config("", "cat /added; touch /x 2>/dev/null || echo refused")
		c.Root = imageRoot(t)
		c.Root.Attr |= mount.ReadOnly
		if got := output(t, l, c, IO{}); got != "toprefused" {
			t.Errorf("got %q", got)
		}
		c.Root.Upper, c.Root.Work, c.Root.Lower = "", "", c.Root.Lower[1:]
		c.Command.Args = []string{"sh", "-c", "cat /etc/group | wc -l; touch /x 2>/dev/null || echo refused"}
		if got := output(t, l, c, IO{}); got != "3\nrefused" {
			t.Errorf("of one layer alone: got %q", got)
		}
	})
}

func TestUserNamespaceImages(t *testing.T) { everyImageWay(t, userNamespaceImages) }

func userNamespaceImages(t *testing.T, l *Launcher) {
	c := mapped(config("", "stat -c %u /bin/busybox /etc/passwd; echo more >> /etc/passwd; echo new > /new; stat -c %u /etc/passwd /new"))
	c.Root = imageRoot(t)
	c.Root.IDMap = true
	if got := output(t, l, c, IO{}); got != "0\n0\n0\n0" {
		t.Errorf("owners inside: %q", got)
	}
	for _, file := range []string{"etc/passwd", "new"} {
		var st unix.Stat_t
		if err := unix.Stat(filepath.Join(c.Root.Upper, file), &st); err != nil || st.Uid != 0 {
			t.Errorf("owner of %s on the disk: %d, %v", file, st.Uid, err)
		}
	}
}

func TestImagesInWaiting(t *testing.T) { everyImageWay(t, imagesInWaiting) }

func imagesInWaiting(t *testing.T, l *Launcher) {
	c := config("", "cat /added")
	c.Root = imageRoot(t)
	w, err := l.Prepare(c, nil)
	must(t, err)
	defer w.Discard()
	got, err := capture(t, IO{}, func(io IO) (*Process, error) { return w.Start(context.Background(), c, io) })
	if err != nil || got.out != "top" {
		t.Errorf("got %+v, %v", got, err)
	}
}

// mounted is how many images are mounted.
func (s *images) mounted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.byPath)
}

// Containers of an image share its mounts, which go with its files, though not
// under those that run.
func TestImagesAreShared(t *testing.T) { everyImageWay(t, imagesAreShared) }

func imagesAreShared(t *testing.T, l *Launcher) {
	c := config("", "")
	c.Root = imageRoot(t)
	first := startSleeper(t, l, c, IO{})
	tree := l.images.byPath[c.Root.Lower[1]].tree
	again := *c
	again.Root.Upper, again.Root.Work = c.Root.Upper+"2", c.Root.Work+"2"
	must(t, os.Mkdir(again.Root.Upper, 0o755))
	must(t, os.Mkdir(again.Root.Work, 0o755))
	again.Command.Args = []string{"cat", "/added"}
	if got := output(t, l, &again, IO{}); got != "top" {
		t.Errorf("got %q", got)
	}
	if now := l.images.byPath[c.Root.Lower[1]].tree; now != tree || l.images.mounted() != 2 {
		t.Errorf("mounted again: %d mounts", l.images.mounted())
	}
	for _, path := range c.Root.Lower {
		must(t, os.Remove(path))
	}
	for began := time.Now(); l.images.mounted() > 0; time.Sleep(time.Millisecond) {
		if time.Since(began) > 5*time.Second {
			t.Fatal("images without a file stay mounted")
		}
	}
	if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/added", first.Pid)); string(b) != "top" {
		t.Errorf("a container that runs sees %q, %v", b, err)
	}
	_, err := l.Start(context.Background(), &again, IO{})
	if err == nil || !strings.Contains(err.Error(), "no such file") || strings.Contains(err.Error(), "\n") {
		t.Errorf("without the files: %v", err)
	}
}

// A file that has taken the place of an image is seen at once, even where nobody
// tells of it.
func TestImageReplaced(t *testing.T) { everyImageWay(t, imageReplaced) }

func imageReplaced(t *testing.T, l *Launcher) {
	c := config("", "cat /added")
	c.Root = imageRoot(t)
	if got := output(t, l, c, IO{}); got != "top" {
		t.Errorf("got %q", got)
	}
	dir := t.TempDir()
	must(t, os.WriteFile(filepath.Join(dir, "added"), []byte("other"), 0o644))
	must(t, os.Rename(imageOf(t, dir, filepath.Join(filepath.Dir(c.Root.Upper), "new")), c.Root.Lower[0]))
	if got := output(t, l, c, IO{}); got != "other" {
		t.Errorf("got %q", got)
	}
	must(t, os.WriteFile(c.Root.Lower[0]+".bad", []byte("no image"), 0o644))
	must(t, os.Symlink(c.Root.Lower[0], c.Root.Lower[0]+".link"))
	image := c.Root.Lower[0]
	for _, suffix := range []string{".bad", ".link"} {
		c.Root.Lower[0] = image + suffix
		if _, err := l.Start(context.Background(), c, IO{}); err == nil || !strings.Contains(err.Error(), suffix) {
			t.Errorf("what is no image: %v", err)
		}
	}
}

// No more images stay mounted than maxImages.
func TestImagesAreTrimmed(t *testing.T) {
	needImages(t)
	dir := t.TempDir()
	s := newImages()
	defer s.close()
	must(t, os.Mkdir(filepath.Join(dir, "empty"), 0o755))
	image, err := os.ReadFile(imageOf(t, filepath.Join(dir, "empty"), filepath.Join(dir, "image")))
	must(t, err)
	for i := range maxImages + 10 {
		path := filepath.Join(dir, fmt.Sprint(i))
		must(t, os.WriteFile(path, image, 0o600))
		_, release, err := s.take([]string{path}, false)
		must(t, err)
		release()
	}
	if n := s.mounted(); n != maxImages {
		t.Errorf("%d images are mounted", n)
	}
	if s.byPath[filepath.Join(dir, "0")] != nil || s.byPath[filepath.Join(dir, fmt.Sprint(maxImages+9))] == nil {
		t.Error("not the longest unused one was dropped")
	}
}

// What is tried out beforehand is what then works, and where files can be mounted and stacked no loop device is taken.
func TestImagesProbe(t *testing.T) {
	r := imageRoot(t)
	s := newImages()
	defer s.close()
	taken, release, err := s.take(r.Lower, false)
	must(t, err)
	defer release()
	tree, err := mount.ImageOverlay(&r, []int{taken[0].tree.FD(), taken[1].tree.FD()}, -1)
	if err == nil {
		tree.Close()
	}
	if can := mount.StacksDetached(); can != (err == nil) {
		t.Errorf("the probe says %v, stacking gives %v", can, err)
	}
	l := newLauncher(t)
	c := config("", "cat /added")
	c.Root = r
	if got := output(t, l, c, IO{}); got != "top" {
		t.Errorf("got %q", got)
	}
	loops := len(onLoops(filepath.Dir(r.Lower[0])))
	t.Logf("detached layers: %v, files mounted: %v, loop devices: %d", err == nil, taken[0].device == "", loops)
	if needed := err != nil || taken[0].device != ""; needed != (loops > 0) {
		t.Errorf("%d loop devices are in use, needed: %v", loops, needed)
	}
}

const takeEnv = "BERTH_IMAGES_TEST_PATHS"

// The images of a process that is killed are gone with it, and with its containers.
func TestF01KilledWithImages(t *testing.T) {
	if paths := os.Getenv(takeEnv); paths != "" {
		_, _, err := newImages().take(strings.Split(paths, ":"), true)
		must(t, err)
		fmt.Println("taken:", len(onLoops(filepath.Dir(strings.Split(paths, ":")[0]))))
		unix.Kill(os.Getpid(), unix.SIGKILL)
	}
	r := imageRoot(t)
	child := exec.Command("/proc/self/exe", "-test.run=^"+t.Name()+"$")
	child.Env = append(os.Environ(), takeEnv+"="+strings.Join(r.Lower, ":"))
	if out, err := child.CombinedOutput(); err == nil || !strings.Contains(string(out), "taken: 2\n") {
		t.Fatalf("%v: %s", err, out)
	}
	noLoops(t, filepath.Dir(r.Lower[0]))
}

// A sleeper keeps its layers although the process that mounted them has let go.
func TestLoopsOutliveLauncher(t *testing.T) {
	everyImageWay(t, func(t *testing.T, l *Launcher) {
		c := config("", "")
		c.Root = imageRoot(t)
		p := startSleeper(t, l, c, IO{})
		l.images.close()
		if b, err := os.ReadFile(fmt.Sprintf("/proc/%d/root/added", p.Pid)); string(b) != "top" {
			t.Errorf("the container sees %q, %v", b, err)
		}
		must(t, p.Signal(unix.SIGKILL))
		p.Wait()
	})
}
