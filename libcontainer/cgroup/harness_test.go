package cgroup

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// These tests put real processes under real limits, on whatever cgroups the host has. They need root, and work
// in groups of their own below berth-test-<number>. The test binary is its own payload: see payloads.

func TestMain(m *testing.M) {
	if run, ok := payloads[os.Getenv("CGROUP_TEST_PAYLOAD")]; ok {
		run()
		os.Exit(0)
	}
	os.Exit(m.Run())
}

var payloads = map[string]func(){
	"wait": func() { time.Sleep(time.Minute) },
	"spin": func() {
		for {
		}
	},
	// hog touches 128 MiB, page by page.
	"hog": func() {
		b, err := unix.Mmap(-1, 0, 128<<20, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANON)
		if err != nil {
			fmt.Println(err)
			return
		}
		for i := 0; i < len(b); i += 4096 {
			b[i] = 1
		}
		fmt.Println("survived")
	},
	// open tries the files named.
	"open": func() {
		for _, path := range os.Args[1:] {
			f, err := os.OpenFile(path, os.O_RDWR, 0)
			var errno syscall.Errno
			errors.As(err, &errno)
			fmt.Println(filepath.Base(path), int(errno))
			if err == nil {
				f.Close()
			}
		}
	},
	// children starts as many as it may, and tells how many that were.
	"children": func() {
		n := 0
		for ; n < 200; n++ {
			if exec.Command("/bin/sleep", "60").Start() != nil {
				break
			}
		}
		fmt.Println(n)
	},
	"cgroup": func() {
		b, err := os.ReadFile("/proc/self/cgroup")
		fmt.Print(string(b))
		if err != nil {
			fmt.Println(err)
		}
	},
	// tick prints a line every millisecond.
	"tick": func() {
		for {
			fmt.Println("tick")
			time.Sleep(time.Millisecond)
		}
	},
}

// slow is how much longer things may take in an emulated machine.
const slow = 20

// testParent makes the directory that the groups of one test go to, and removes it in the end.
func testParent(t testing.TB) (Layout, *Parent, string) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: needs root")
	}
	l, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	path := "berth-test-" + strconv.Itoa(rand.IntN(1e9))
	p, err := OpenParent(l, path)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		names, _ := p.List()
		for _, name := range names {
			t.Errorf("group %s was left behind", name)
			if g, err := p.Open(name); err == nil {
				t.Log(g.Kill(), g.Delete())
			}
		}
		if err := p.Delete(); err != nil {
			t.Errorf("delete parent: %v", err)
		}
	})
	return l, p, path
}

func testGroup(t testing.TB, p *Parent, r Resources) *Group {
	t.Helper()
	g, err := p.Create("g"+strconv.Itoa(rand.IntN(1e9)), r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := errors.Join(g.Kill(), g.Delete(), g.Close()); err != nil {
			t.Errorf("clean up: %v", err)
		}
	})
	return g
}

// need skips a test whose controller the host lacks.
func need(t testing.TB, p *Parent, controller string) *tree {
	t.Helper()
	tree, err := p.find(controller, "test")
	if err != nil {
		t.Skipf("SKIPPED: %v", err)
	}
	return tree
}

// payload is the command that runs one of the payloads.
func payload(name string, args ...string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe", args...)
	cmd.Env = append(os.Environ(), "CGROUP_TEST_PAYLOAD="+name, "GOMAXPROCS=2")
	return cmd
}

// start forks a command into the group as a launcher does: Enter, clone, LeaveTo.
func start(t testing.TB, l Layout, g *Group, cmd *exec.Cmd) {
	t.Helper()
	if err := tryStart(l, g, cmd); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
}

func tryStart(l Layout, g *Group, cmd *exec.Cmd) error {
	back, err := Self(l)
	if err != nil {
		return err
	}
	defer back.Close()
	if cmd.Stdin == nil { // Start would open them inside the group, where the device policy may forbid it
		null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
		if err != nil {
			return err
		}
		defer null.Close()
		cmd.Stdin, cmd.Stderr = null, null
	}
	return OnThread(func() error {
		fd, err := g.FD()
		if err != nil {
			return err
		}
		if fd >= 0 {
			cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: fd}
		}
		err = g.Enter()
		if err == nil {
			err = cmd.Start()
		}
		if err == nil && g.LateJoin() {
			err = g.AddProcess(cmd.Process.Pid)
		}
		return errors.Join(err, g.LeaveTo(back))
	})
}

func output(t testing.TB, l Layout, g *Group, cmd *exec.Cmd) (string, error) {
	t.Helper()
	var out strings.Builder
	cmd.Stdout = &out
	start(t, l, g, cmd)
	err := cmd.Wait()
	return out.String(), err
}
