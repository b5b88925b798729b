// Worker launches containers on request (package orders), as a client of an engine or by itself:
//
//	bench-worker grpc SOCKET
//	bench-worker libcontainer BERTH-INIT ROOTFS CGROUP
package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"berth/bench/orders"
)

func main() {
	if err := run(context.Background(), os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "bench-worker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string) error {
	switch {
	case len(args) == 2 && args[0] == "grpc":
		e, err := connect(args[1])
		if err != nil {
			return err
		}
		defer e.close()
		return orders.Serve(ctx, os.Stdin, os.Stdout, e.operations())
	case len(args) == 4 && args[0] == "libcontainer":
		l, err := newLibrary(args[1], args[2], args[3])
		if err != nil {
			return err
		}
		defer l.close()
		return orders.Serve(ctx, os.Stdin, os.Stdout, l.operations())
	}
	return errors.New("usage: bench-worker grpc SOCKET, or bench-worker libcontainer BERTH-INIT ROOTFS CGROUP")
}
