package format

import (
	"fmt"
	"time"
)

// ShortID is the 12 leading hex digits of an id, without its algorithm.
func ShortID(id string) string {
	for i := 0; i < len(id); i++ {
		if id[i] == ':' {
			id = id[i+1:]
			break
		}
	}
	if len(id) > 12 {
		return id[:12]
	}
	return id
}

// Bytes is a size in decimal units, as registries and `docker images` count: "1.44GB".
func Bytes(n int64) string {
	return scaled(float64(n), 1000, []string{"B", "kB", "MB", "GB", "TB", "PB"})
}

// BinaryBytes is a size in binary units, as memory is counted: "12.5MiB".
func BinaryBytes(n int64) string {
	return scaled(float64(n), 1024, []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB"})
}

func scaled(v, base float64, units []string) string {
	i := 0
	for v >= base && i < len(units)-1 {
		v /= base
		i++
	}
	return fmt.Sprintf("%.4g%s", v, units[i])
}

// Duration is a span in the words of `docker ps`: "3 minutes".
func Duration(d time.Duration) string {
	s, m, h := int(d.Seconds()), int(d.Minutes()), int(d.Hours()+0.5)
	switch {
	case s < 1:
		return "Less than a second"
	case s == 1:
		return "1 second"
	case s < 60:
		return fmt.Sprintf("%d seconds", s)
	case m == 1:
		return "About a minute"
	case m < 60:
		return fmt.Sprintf("%d minutes", m)
	case h == 1:
		return "About an hour"
	case h < 48:
		return fmt.Sprintf("%d hours", h)
	case h < 24*7*2:
		return fmt.Sprintf("%d days", h/24)
	case h < 24*30*2:
		return fmt.Sprintf("%d weeks", h/24/7)
	case h < 24*365*2:
		return fmt.Sprintf("%d months", h/24/30)
	}
	return fmt.Sprintf("%d years", h/24/365)
}

// Ago is how long ago t was: "3 minutes ago".
func Ago(t time.Time) string {
	if t.IsZero() || t.Unix() <= 0 {
		return "N/A"
	}
	return Duration(time.Since(t)) + " ago"
}
