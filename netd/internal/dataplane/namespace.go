package dataplane

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// inside runs f on a thread that is in the namespace. The thread ends with its
// goroutine unless it is certain to be home again.
func inside(ns *os.File, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		result <- func() error {
			home, err := os.Open("/proc/thread-self/ns/net")
			if err != nil {
				return err
			}
			defer home.Close()
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				return os.NewSyscallError("setns", err)
			}
			err = f()
			if unix.Setns(int(home.Fd()), unix.CLONE_NEWNET) == nil {
				runtime.UnlockOSThread()
			}
			return err
		}()
	}()
	return <-result
}

// A knob is a setting of a network namespace, below /proc/sys/net.
type knob struct {
	path, value string
	optional    bool // not every kernel has it
}

func set(knobs ...knob) error {
	for _, k := range knobs {
		path := filepath.Join("/proc/sys/net", k.path)
		if b, err := os.ReadFile(path); err == nil && string(b) == k.value+"\n" {
			continue // it may be there to read alone
		}
		err := os.WriteFile(path, []byte(k.value), 0)
		if err != nil && !(k.optional && errors.Is(err, fs.ErrNotExist)) {
			return err
		}
	}
	return nil
}

// setKnobs: ports and TIME_WAIT as many short connections through the proxy need
// them, connections forgotten an hour after their last packet and no later than
// package bpf forgets their flows, a refusal for every packet that gets one, and no
// addresses or redirects but ours. Where a packet comes from package bpf has looked at:
// that the kernel looks for its source's route, too, is a lookup for nothing.
func (p *Plane) setKnobs() error {
	return inside(p.cfg.Inside, func() error {
		return set(
			knob{path: "ipv4/conf/all/rp_filter", value: "0"},
			knob{path: "ipv4/conf/default/rp_filter", value: "0"},
			knob{path: "ipv4/conf/all/accept_local", value: "1"},
			knob{path: "ipv4/conf/all/send_redirects", value: "0"},
			knob{path: "ipv4/conf/default/send_redirects", value: "0"},
			knob{path: "ipv4/conf/all/accept_redirects", value: "0"},
			knob{path: "ipv6/conf/all/accept_redirects", value: "0"},
			knob{path: "ipv6/conf/default/accept_redirects", value: "0"},
			knob{path: "ipv6/conf/all/disable_ipv6", value: "0"},
			knob{path: "ipv6/conf/default/disable_ipv6", value: "0"},
			knob{path: "ipv6/conf/default/accept_ra", value: "0"},
			knob{path: "ipv6/conf/default/addr_gen_mode", value: "1"},
			knob{path: "ipv4/icmp_ratelimit", value: "0"},
			knob{path: "ipv6/icmp/ratelimit", value: "0"},
			knob{path: "ipv4/tcp_tw_reuse", value: "1"},
			knob{path: "ipv4/ip_local_port_range", value: "10240\t65000"},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_established", value: "3600", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_syn_sent", value: "30", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_syn_recv", value: "30", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_fin_wait", value: "60", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_close_wait", value: "60", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_last_ack", value: "5", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_time_wait", value: "5", optional: true},
			knob{path: "netfilter/nf_conntrack_tcp_timeout_close", value: "5", optional: true},
			knob{path: "netfilter/nf_conntrack_udp_timeout", value: "30", optional: true},
			knob{path: "netfilter/nf_conntrack_udp_timeout_stream", value: "60", optional: true},
		)
	})
}

// setForwarding is the last step inside, and the host's part of the way out. A host
// that takes its IPv6 routes from router advertisements goes on doing so.
func (p *Plane) setForwarding() error {
	forward := []knob{{path: "ipv4/ip_forward", value: "1"}, {path: "ipv6/conf/all/forwarding", value: "1"}}
	if err := inside(p.cfg.Inside, func() error { return set(forward...) }); err != nil {
		return err
	}
	return inside(p.cfg.Host, func() error {
		if err := keepAdvertisements(); err != nil {
			return err
		}
		return set(forward...)
	})
}

func keepAdvertisements() error {
	if b, err := os.ReadFile("/proc/sys/net/ipv6/conf/all/forwarding"); err != nil || string(b) != "0\n" {
		return nil // the host is a router already, or has no IPv6
	}
	all, err := filepath.Glob("/proc/sys/net/ipv6/conf/*/accept_ra")
	if err != nil {
		return err
	}
	for _, path := range all {
		if b, err := os.ReadFile(path); err != nil || string(b) != "1\n" {
			continue
		}
		const evenWhenForwarding = 2
		if err := os.WriteFile(path, []byte(strconv.Itoa(evenWhenForwarding)), 0); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return nil
}
