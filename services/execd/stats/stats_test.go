package stats

import (
	"strings"
	"testing"
)

func TestParseNetDev(t *testing.T) {
	const text = `Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo: 1000      10    0    0    0     0          0         0     1000      10    0    0    0     0       0          0
  eth0: 2048      20    0    0    0     0          0         0      512       5    0    0    0     0       0          0
eth1:18446744073709551615 1 0 0 0 0 0 0 7 1 0 0 0 0 0 0
`
	rx, tx := parseNetDev(strings.NewReader(text))
	if rx != 2047 || tx != 519 { // eth1's counter is about to wrap, as is the sum
		t.Errorf("got %d, %d", rx, tx)
	}
}
