// Command berth-unpack makes one layer of one archive, shut in with nothing but
// the layer's directory; see package inside. imaged starts one for each layer.
package main

import (
	"fmt"
	"os"

	"berth/internal/version"
	"berth/services/imaged/worker/inside"
)

func main() {
	if len(os.Args) > 1 {
		if os.Args[1] == "--version" {
			fmt.Println("berth-unpack", version.String())
			return
		}
		fmt.Fprintln(os.Stderr, "berth-unpack: imaged starts it; by itself it does nothing")
		os.Exit(2)
	}
	os.Exit(inside.Main())
}
