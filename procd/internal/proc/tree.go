package proc

import (
	"bytes"
	"os"
	"strconv"
	"syscall"
)

// clockTick is the unit of /proc's CPU times, USER_HZ: 100 on every Linux.
const clockTick = 10_000_000 // nanoseconds

// stat is what /proc says of a process.
type stat struct {
	pid, ppid, session int
	state              byte
	threads            int
	cpuTicks           int64
	rssPages           int64
	vmsBytes           int64
}

// readStat parses /proc/PID/stat; ok is false when there is no such process.
func readStat(pid int) (s stat, ok bool) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return stat{}, false
	}
	return parseStat(pid, b)
}

func parseStat(pid int, b []byte) (s stat, ok bool) {
	// The name may hold anything, spaces and parentheses included: its end is the last one.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return stat{}, false
	}
	f := bytes.Fields(b[i+1:]) // f[0] is field 3 of proc(5)
	if len(f) < 22 {
		return stat{}, false
	}
	number := func(field int) int64 {
		n, err := strconv.ParseInt(string(f[field-3]), 10, 64)
		if err != nil {
			return 0
		}
		return n
	}
	return stat{
		pid: pid, ppid: int(number(4)), session: int(number(6)), state: f[0][0],
		threads: int(number(20)), cpuTicks: number(14) + number(15), vmsBytes: number(23), rssPages: number(24),
	}, true
}

// processes lists what runs in this pid namespace.
func processes() []stat {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil
	}
	defer dir.Close()
	names, _ := dir.Readdirnames(-1)
	all := make([]stat, 0, len(names))
	for _, name := range names {
		if pid, err := strconv.Atoi(name); err == nil {
			if s, ok := readStat(pid); ok {
				all = append(all, s)
			}
		}
	}
	return all
}

// family is the living members of the session that leader led, and every living
// descendant of theirs.
func family(leader int) []stat {
	all := processes()
	in := map[int]bool{leader: true}
	for {
		before := len(in)
		for _, s := range all {
			if s.session == leader || in[s.ppid] {
				in[s.pid] = true
			}
		}
		if len(in) == before {
			break
		}
	}
	var members []stat
	for _, s := range all {
		if in[s.pid] && s.state != 'Z' {
			members = append(members, s)
		}
	}
	return members
}

// signalFamily signals every member and returns how many there were.
func signalFamily(leader int, sig syscall.Signal) int {
	members := family(leader)
	for _, m := range members {
		_ = syscall.Kill(m.pid, sig) // it may have ended since
	}
	return len(members)
}
