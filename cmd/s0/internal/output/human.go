package output

import (
	"fmt"
	"time"
)

// Since tells how long ago t was: "5m ago". A time that is not set is "".
func Since(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	if t.After(now) {
		return "in " + span(t.Sub(now))
	}
	return span(now.Sub(t)) + " ago"
}

// Until tells when something ends: "in 5m"; a time that is not set is "never".
func Until(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return Since(t, now)
}

// Age is how old something is: "5m".
func Age(t, now time.Time) string {
	if t.IsZero() {
		return ""
	}
	return span(max(0, now.Sub(t)))
}

// span rounds to what people would say: two days and an hour are two days.
func span(d time.Duration) string {
	const day = 24 * time.Hour
	switch {
	case d >= 2*day:
		return fmt.Sprintf("%dd", d/day)
	case d >= 2*time.Hour:
		return fmt.Sprintf("%dh", d/time.Hour)
	case d >= 2*time.Minute:
		return fmt.Sprintf("%dm", d/time.Minute)
	}
	return fmt.Sprintf("%ds", d/time.Second)
}

// Bytes is a size in binary units: "1.5 MiB".
func Bytes(n int64) string {
	const unit = 1024
	if n < unit {
		return fmt.Sprintf("%d B", n)
	}
	value, prefix := float64(n)/unit, 0
	for value >= unit && prefix < len("KMGTPE")-1 {
		value /= unit
		prefix++
	}
	return fmt.Sprintf("%.1f %ciB", value, "KMGTPE"[prefix])
}
