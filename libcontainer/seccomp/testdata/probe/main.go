// Probe makes the system calls that its arguments name and prints what the
// kernel answers: "NUMBER[,ARGUMENT…]" in, the error number out, one a line.
// The test builds it for both word sizes, for a filter sees other numbers in
// each.
package main

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

func main() {
	var out []byte
	for _, call := range os.Args[1:] {
		var a [7]uintptr
		for i, field := range strings.Split(call, ",") {
			n, err := strconv.ParseUint(field, 0, 64)
			if err != nil {
				panic(err)
			}
			a[i] = uintptr(n)
		}
		_, _, errno := syscall.RawSyscall6(a[0], a[1], a[2], a[3], a[4], a[5], a[6])
		out = strconv.AppendInt(out, int64(errno), 10)
		out = append(out, '\n')
	}
	os.Stdout.Write(out)
}
