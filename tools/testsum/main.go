// Command testsum runs "go test" and says at the end how many tests passed, failed and were skipped, and why each of
// the latter was. Without -v, go test says nothing about a skipped test in a package that passes.
//
//	testsum [-append FILE] ARGUMENTS OF GO TEST
//
// What go test itself would print stays: a line a package, and everything that failing tests, failing packages and
// failing builds said. The exit status is go test's. -append adds the sums to FILE, for several runs one after the other.
package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
)

func main() {
	args, file := os.Args[1:], ""
	if len(args) >= 2 && args[0] == "-append" {
		file, args = args[1], args[2:]
	}
	if len(args) == 0 {
		fmt.Fprintln(os.Stderr, "error: usage: testsum [-append FILE] ARGUMENTS OF GO TEST")
		os.Exit(2)
	}
	// Ctrl-C reaches go test as well: it ends, and what came until then is summed up.
	signal.Notify(make(chan os.Signal, 1), os.Interrupt)
	sums, code, err := run(args, "", os.Stdout, os.Stderr)
	if err == nil && file != "" {
		err = appendTo(file, sums)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "error:", err)
		code = max(code, 1)
	}
	os.Exit(code)
}

// run runs go test in dir (empty: here), prints what it says and then the sums, which it also gives with go test's exit
// status. An error says that go test could not be run or understood; code is not 0 then.
func run(args []string, dir string, stdout, stderr io.Writer) (sums []byte, code int, err error) {
	test := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	test.Dir, test.Stderr = dir, stderr
	out, err := test.StdoutPipe()
	if err != nil {
		return nil, 1, err
	}
	if err := test.Start(); err != nil {
		return nil, 1, err
	}
	s := newSummary(stdout)
	readErr := s.read(out)
	err = test.Wait()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		code, err = exit.ExitCode(), nil
		if code < 0 { // a signal
			code = 1
		}
	case err != nil:
		code = 1
	}
	var text bytes.Buffer
	s.end(&text)
	if code == 0 && s.failed() {
		code, err = 1, errors.New("go test reported failures and exited with 0")
	}
	if readErr != nil {
		code = max(code, 1)
		err = errors.Join(err, fmt.Errorf("read what go test says: %w", readErr))
	}
	_, writeErr := stdout.Write(text.Bytes())
	return text.Bytes(), code, errors.Join(err, writeErr)
}

func appendTo(file string, sums []byte) error {
	f, err := os.OpenFile(file, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(sums)
	return errors.Join(err, f.Close())
}
