package channel

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
	"unicode"

	"s0.run/internal/procapi"
)

const (
	// A line of procd's about its warm processes: a reason may be escaped.
	maxWarmLine = 1<<10 + 6*procapi.MaxWarmReason

	// Changes come as they are at first; a sandbox that has many is heard out slowly.
	warmBurst, warmPace = 10, 200 * time.Millisecond
)

// FollowWarm reads how procd's warm processes are, and each change of that, until
// tell returns false. The reasons are fit to be shown.
func (c *Channel) FollowWarm(ctx context.Context, tell func(procapi.WarmStatus) (goOn bool)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://procd"+procapi.PathWarm, http.NoBody)
	if err != nil {
		return fmt.Errorf("following the warm processes: %w", err)
	}
	resp, err := c.RoundTrip(req)
	if err != nil {
		return fmt.Errorf("following the warm processes: %w", err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("following the warm processes: status %d", resp.StatusCode)
	}
	lines := bufio.NewScanner(resp.Body)
	lines.Buffer(nil, maxWarmLine)
	for n := 0; lines.Scan(); n++ {
		var status procapi.WarmStatus
		if err := json.Unmarshal(lines.Bytes(), &status); err != nil {
			return fmt.Errorf("following the warm processes: %w", err)
		}
		status.Reason = showable(status.Reason)
		if status.Failed {
			status.Ready = false
		}
		if status.Ready {
			status.Reason = ""
		}
		if !tell(status) {
			return nil
		}
		if n < warmBurst {
			continue
		}
		select {
		case <-time.After(warmPace):
		case <-ctx.Done():
		}
	}
	return fmt.Errorf("following the warm processes: %w", cmp.Or(lines.Err(), io.ErrUnexpectedEOF))
}

// showable makes a reason from inside fit for logs, records and tenants.
func showable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return '?'
	}, s)
	if len(s) > procapi.MaxWarmReason {
		s = strings.ToValidUTF8(s[:procapi.MaxWarmReason], "")
	}
	if s == "" {
		return "its warm processes do not say why"
	}
	return s
}
