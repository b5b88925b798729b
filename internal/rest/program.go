package rest

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Started notes that the process has started. A second later it lets go of the
// pages of its program: starting touches most of them, to initialise packages
// and describe messages, and a process that waits needs few of them.
//
// What is needed comes back by itself from the page cache, a fault for 16 pages,
// so the first request after it pays: some 400 faults in five processes, 3 ms of
// CPU time, for the first container. Hence once in a process's life, and not
// whenever it rests.
func Started() { once.Do(func() { time.AfterFunc(after, func() { _ = forgetProgram() }) }) }

var once sync.Once

// forgetProgram unmaps the pages of the running program's code and constants
// from this process. The kernel reads /proc/self/smaps since Linux 2.6.14.
func forgetProgram() error {
	program, err := os.Readlink("/proc/self/exe")
	if err != nil {
		return err
	}
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		return err
	}
	defer f.Close()
	maps, err := clean(f, program)
	if err != nil {
		return err
	}
	for _, m := range maps {
		// MADV_DONTNEED on a private mapping of a file: the next access finds the file's page.
		if _, _, errno := syscall.Syscall(syscall.SYS_MADVISE, m.start, m.end-m.start, syscall.MADV_DONTNEED); errno != 0 {
			return fmt.Errorf("madvise %x-%x: %w", m.start, m.end, errno)
		}
	}
	return nil
}

type mapping struct{ start, end uintptr }

// clean are the mappings of a file in the text of proc_pid_smaps(5) that hold
// nothing but the file's own pages: they cannot be written, and no page is a
// copy, as a debugger's breakpoints or an address that was relocated would make it.
func clean(smaps io.Reader, file string) ([]mapping, error) {
	var all []mapping
	var m mapping
	ours := false // the lines that follow are about m, a mapping of the file
	lines := bufio.NewScanner(smaps)
	for lines.Scan() {
		line := lines.Text()
		// "00400000-00a3b000 r-xp 00000000 08:01 1234    /usr/bin/program", or "Rss:    12 kB"
		words := strings.Fields(line)
		if len(words) < 2 {
			continue
		}
		switch from, to, found := strings.Cut(words[0], "-"); {
		case words[0] == "Anonymous:":
			if ours && words[1] == "0" {
				all = append(all, m)
			}
			ours = false
		case found && !strings.HasSuffix(words[0], ":"):
			start, err1 := strconv.ParseUint(from, 16, 64)
			end, err2 := strconv.ParseUint(to, 16, 64)
			if err1 != nil || err2 != nil {
				return nil, fmt.Errorf("unexpected line %q", line)
			}
			m = mapping{uintptr(start), uintptr(end)}
			ours = len(words) >= 6 && (words[1] == "r-xp" || words[1] == "r--p") && strings.HasSuffix(line, " "+file)
		}
	}
	return all, lines.Err()
}
