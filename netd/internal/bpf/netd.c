//go:build ignore

// SPDX-License-Identifier: Apache-2.0
//
// What netd has the kernel do with every packet of a sandbox.
//
//   from_sandbox  clsact ingress of each veth's host end: who sent it, may it go, how
//   to_sandbox    clsact egress of the same: counts and limits what comes through it
//   from_uplink   clsact ingress of the way out: whose is what comes back, and likewise
//   pick          sk_lookup: hands what is for netd itself to netd's sockets
//
// A packet leaves from_sandbox with a mark, and the nft rules of package dataplane
// let nothing pass without the right one; or, if it may leave as it is, straight into
// the host's network, whose rules track it, and what is sent back has to belong to a
// flow. Judging is stateless, so that a policy's change counts from the next packet on.
// Whatever is not understood is dropped.
//
// The tables are written by table.go; layouts here and there are the same types,
// for bpf2go makes the latter from the former. Only uapi types are used: no BTF of
// the running kernel is needed.

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define AF_INET 2
#define AF_INET6 10

// Marks, as the nft rules know them.
enum mark {
	MARK_LOCAL = 0x4e440001, // to netd's own sockets
	MARK_DENY = 0x4e440002,  // answered with a refusal
	MARK_ALLOW = 0x4e440004, // out, through the namespace's own rules
};

#define STRAIGHT 1 // no mark: past them

// Actions of package policy.
enum action {
	ACT_DENY,
	ACT_ALLOW,
	ACT_PROXY, // TCP alone: what the proxy says
	ACT_LEARN, // if the address was learnt for the entry's slot
	ACT_AUDIT, // pass what an enforced policy would deny
};

enum reason {
	WHY_RULE,      // the policy's rules
	WHY_NOPOLICY,  // there is no policy yet
	WHY_FIXED,     // always denied
	WHY_UNLEARNED, // nobody resolved a name to it
	WHY_SPOOFED,   // not the sandbox's addresses
	WHY_NOT_IP,
	WHY_FRAGMENT,
	WHY_OPTIONS,
	WHY_PROTOCOL,
	WHY_ICMP,
	WHY_SHORT,
	WHY_THROTTLED,
	WHY_FLOWS, // too many at once
};

enum listener {
	SOCK_PROXY4,
	SOCK_PROXY6,
	SOCK_DNS_TCP4,
	SOCK_DNS_TCP6,
	SOCK_DNS_UDP4,
	SOCK_DNS_UDP6,
	SOCKETS,
};

#define MAX_RULES 16 // policy.MaxEntries

#define SANDBOX_LIMITED 1 // has a bucket of its own
#define SANDBOX_SHARED 2  // has its team's bucket
#define SANDBOX_PROXIED 4 // has or had connections through the proxy

#define MAX_SANDBOXES 16384
#define MAX_ENTRIES (1 << 19)
#define MAX_NAMES (1 << 18)
#define NANOS 1000000000ULL
#define EVENT_RATE 64 // events a second of each sandbox on each CPU, and as many at once

// What passes by address alone has an entry each, so that it is told with its size,
// and so that no sandbox fills conntrack (D09): that has room for MAX_FLOWS, forgets
// no later than table.go does, and gives nobody more than a part.
#define MAX_FLOWS (1 << 17)
#define MAX_EACH 4096   // of a sandbox
#define SCARCE_EACH 512 // of a sandbox, while more than half of all are in use
#define ALL 0           // no sandbox's serial: all of them

struct sandbox {
	__u64 owner;  // which sandbox, and which instance of it
	__u64 naming; // what its policy's slots stand for
	__u32 gen;    // of its rules; 0 while it has no policy
	__u32 serial; // of the attachment: never used twice
	__u32 team;   // names its team's buckets
	__u32 flags;
	__be32 ip4;
	__u8 ip6[16];
	__u8 mac[6];
	__u8 pad[6];
};

// An element that is removed or replaced may be another key's at once, under the eyes of
// a program that has found it. What a verdict depends on is therefore changed in place,
// under its lock, and a program copies it under the same and looks whose it is: all of a
// packet's verdict is by one state of one sandbox. What is only counted may miss.
struct sandbox_row {
	struct bpf_spin_lock lock;
	__u32 link; // its key
	struct sandbox of;
};

struct rule {
	__u8 protocol;
	__u8 action;
	__u8 slot;      // of ACT_LEARN
	__u8 unlearned; // of ACT_LEARN: the action for addresses that were not learnt
	__u16 low, high; // ports
};

// The rules of the smallest network that holds an address decide: they have what
// the larger ones say in them.
struct rules {
	__u16 n;
	__u8 fallback; // the action where no rule is about a packet
	__u8 pad;
	struct rule rule[MAX_RULES];
};

struct key4 {
	__u32 bits, gen;
	__be32 ip;
};

struct key6 {
	__u32 bits, gen;
	__u8 ip[16];
};

struct fixed4 {
	__u32 bits;
	__be32 ip;
};

struct fixed6 {
	__u32 bits;
	__u8 ip[16];
};

// What was learnt counts as long as the slots stand for the same names.
struct name_key {
	__u64 naming;
	__u32 serial, pad;
	__u8 ip[16]; // IPv4 as ::ffff:0:0/96
};

struct name {
	__u64 until; // since boot
	__u64 slots; // a bit each
};

struct name_row {
	struct bpf_spin_lock lock;
	__u32 pad;
	struct name_key key;
	struct name of;
};

struct counters {
	__u64 sent_packets, sent_bytes, received_packets, received_bytes;
	__u64 denied, malformed, throttled;
	__u64 flows; // let begin
	__u64 lost;  // events
	__u64 event_tokens, event_time;
};

struct bucket_id {
	__u32 id;  // a sandbox's serial, or a team
	__u16 team; // 1: the latter
	__u16 received;
};

// Tokens are billionths of bytes, so that no rounding starves a slow one.
struct bucket {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 tokens, time, rate, burst;
};

struct event {
	__u64 time; // since boot
	__u32 serial;
	__u8 action, reason, protocol, family;
	__u16 sport, dport;
	__u8 dst[16];
};

struct flow_key {
	__u32 serial;
	__u16 sport, dport;
	__u8 dst[16];
	__u8 protocol;
	__u8 pad[3];
};

struct flow {
	__u64 began, last;     // since boot
	__u64 sent, received; // bytes of frames
	__u8 action, reason;
	__u8 fin_sent, fin_received, reset; // a byte each: two CPUs may set them at once
	__u8 straight; // as it began, so that one address stands for it to the end
	__u16 tick;    // the kernel's, of last
};

// Of either family, IPv4 as ::ffff:0:0/96.
struct address {
	__u8 ip[16];
};

struct seen {
	__u32 serial;
	__u16 dport;
	__u8 reason, protocol;
	__u8 dst[16];
};

// bpf2go finds types by name among those that are used.
const struct event *unused_event __attribute__((unused));
const enum mark *unused_mark __attribute__((unused));
const enum action *unused_action __attribute__((unused));
const enum reason *unused_reason __attribute__((unused));
const enum listener *unused_listener __attribute__((unused));

#define PINNED __uint(pinning, LIBBPF_PIN_BY_NAME)

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SANDBOXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // ifindex
	__type(value, struct sandbox_row);
	PINNED;
} sandboxes SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ENTRIES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key4);
	__type(value, struct rules);
	PINNED;
} rules4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, MAX_ENTRIES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct key6);
	__type(value, struct rules);
	PINNED;
} rules6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fixed4);
	__type(value, __u8);
	PINNED;
} always4 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(max_entries, 4096);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct fixed6);
	__type(value, __u8);
	PINNED;
} always6 SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_NAMES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct name_key);
	__type(value, struct name_row);
	PINNED;
} names SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(max_entries, MAX_SANDBOXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // ifindex
	__type(value, struct counters);
	PINNED;
} counts SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 4 * MAX_SANDBOXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct bucket_id);
	__type(value, struct bucket);
	PINNED;
} buckets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
	PINNED;
} flows SEC(".maps");

// How many flows a sandbox has is what was opened, which only programs count, less
// what was closed, which only user space does: neither overwrites the other's.
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SANDBOXES + 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); // serial, or ALL
	__type(value, __u64);
	PINNED;
} opened SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_SANDBOXES + 1);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} closed SEC(".maps");

// The namespace's end of the way out, or 0 while the host knows no way to sandboxes'
// own addresses: what is let through is translated in the namespace then.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u32); // ifindex
	PINNED;
} uplink SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, 2 * MAX_SANDBOXES);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct address);
	__type(value, __u32); // ifindex
	PINNED;
} addresses SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__uint(max_entries, 1 << 14);
	__type(key, struct seen);
	__type(value, __u64);
} told SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 19);
} events SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, SOCKETS);
	__type(key, __u32);
	__type(value, __u64);
	PINNED;
} sockets SEC(".maps");

// The sandboxes' networks and the MAC of every veth's host end.
const volatile __be32 net4, mask4;
const volatile __u32 net6[2]; // a /64
const volatile __u8 host_mac[6];

// Whether the kernel counts for a sandbox's end of its link what is moved there.
const volatile __u8 peer_counted;

struct packet {
	__u32 family, protocol;
	__u16 sport, dport; // as numbers
	__u8 dst[16];
	__be32 dst4;
	__u8 flags; // TCP's
	__u8 code;  // ICMP's type
};

struct verdict {
	__u32 action, reason;
};

#define FIN 0x01
#define SYN 0x02
#define RST 0x04
#define ACK 0x10

static __always_inline int begins(const struct packet *p)
{
	return (p->flags & (SYN | ACK)) == SYN;
}

static __always_inline int differs(const __u8 *a, const volatile __u8 *b, int n)
{
	int d = 0;
#pragma unroll
	for (int i = 0; i < n; i++)
		d |= a[i] ^ b[i];
	return d;
}

// find_sandbox copies what is known of a link's sandbox.
static __always_inline int find_sandbox(__u32 link, struct sandbox *s)
{
	struct sandbox_row *row = bpf_map_lookup_elem(&sandboxes, &link);
	if (!row)
		return 0;
	bpf_spin_lock(&row->lock);
	__u32 of = row->link;
	*s = row->of;
	bpf_spin_unlock(&row->lock);
	return of == link;
}

// take asks a bucket for a packet's bytes.
static __always_inline int take(__u32 id, __u16 team, __u16 received, __u64 bytes)
{
	struct bucket_id key = { .id = id, .team = team, .received = received };
	struct bucket *b = bpf_map_lookup_elem(&buckets, &key);
	if (!b)
		return 1;
	__u64 now = bpf_ktime_get_boot_ns(), want = bytes * NANOS;
	int ok = 0;
	bpf_spin_lock(&b->lock);
	__u64 past = now - b->time;
	if (now < b->time)
		past = 0;
	if (past > NANOS)
		past = NANOS;
	b->time = now;
	b->tokens += past * b->rate;
	if (b->tokens > b->burst)
		b->tokens = b->burst;
	if (b->tokens >= want) {
		b->tokens -= want;
		ok = 1;
	}
	bpf_spin_unlock(&b->lock);
	return ok;
}

static __always_inline int within_limits(const struct sandbox *s, __u16 received, __u64 bytes)
{
	if (s->flags & SANDBOX_LIMITED && !take(s->serial, 0, received, bytes))
		return 0;
	return !(s->flags & SANDBOX_SHARED) || take(s->team, 1, received, bytes);
}

// may_tell bounds what one sandbox may have told: nobody else's events are lost for it.
static __always_inline int may_tell(struct counters *c, __u64 now)
{
	__u64 past = now - c->event_time;
	if (past > NANOS)
		past = NANOS;
	c->event_time = now;
	__u64 tokens = c->event_tokens + past * EVENT_RATE;
	if (tokens > EVENT_RATE * NANOS)
		tokens = EVENT_RATE * NANOS;
	int ok = tokens >= NANOS;
	c->event_tokens = ok ? tokens - NANOS : tokens;
	return ok;
}

// tell reports a denial, the same one once a second at most.
static __always_inline void tell(const struct sandbox *s, struct counters *c, const struct packet *p, struct verdict v)
{
	__u64 now = bpf_ktime_get_boot_ns();
	struct seen key = { .serial = s->serial, .dport = p->dport, .reason = v.reason | v.action << 4, .protocol = p->protocol };
	__builtin_memcpy(key.dst, p->dst, 16);
	__u64 *last = bpf_map_lookup_elem(&told, &key);
	if (last && now - *last < NANOS)
		return;
	bpf_map_update_elem(&told, &key, &now, BPF_ANY);
	struct event *e = may_tell(c, now) ? bpf_ringbuf_reserve(&events, sizeof(*e), 0) : 0;
	if (!e) {
		c->lost++;
		return;
	}
	e->time = now;
	e->serial = s->serial;
	e->action = v.action;
	e->reason = v.reason;
	e->protocol = p->protocol;
	e->family = p->family;
	e->sport = p->sport;
	e->dport = p->dport;
	__builtin_memcpy(e->dst, p->dst, 16);
	bpf_ringbuf_submit(e, 0);
}

// parse_transport reads what is behind the IP header. It returns a reason, or -1.
static __always_inline int parse_transport(struct __sk_buff *skb, __u32 at, struct packet *p)
{
	struct {
		__be16 sport, dport;
		__u8 skip[9], flags; // TCP's
	} t = {};
	switch (p->protocol) {
	case IPPROTO_TCP:
		if (bpf_skb_load_bytes(skb, at, &t, 14))
			return WHY_SHORT;
		p->flags = t.flags;
		break;
	case IPPROTO_UDP:
		if (bpf_skb_load_bytes(skb, at, &t, 8))
			return WHY_SHORT;
		break;
	case IPPROTO_ICMP:
	case IPPROTO_ICMPV6:
		if (bpf_skb_load_bytes(skb, at, &p->code, 1))
			return WHY_SHORT;
		return (p->protocol == IPPROTO_ICMP) == (p->family == AF_INET) ? -1 : WHY_PROTOCOL;
	default:
		return WHY_PROTOCOL;
	}
	p->sport = bpf_ntohs(t.sport);
	p->dport = bpf_ntohs(t.dport);
	return -1;
}

static __always_inline int parse4(struct __sk_buff *skb, const struct sandbox *s, struct packet *p)
{
	struct iphdr h;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &h, sizeof(h)) || h.version != 4)
		return WHY_SHORT;
	p->family = AF_INET;
	p->protocol = h.protocol;
	p->dst4 = h.daddr;
	p->dst[10] = p->dst[11] = 0xff;
	__builtin_memcpy(p->dst + 12, &h.daddr, 4);
	if (h.saddr != s->ip4)
		return WHY_SPOOFED;
	if (h.ihl != 5)
		return WHY_OPTIONS;
	if (h.frag_off & bpf_htons(0x3fff)) // a part of a packet, or more of it follows
		return WHY_FRAGMENT;
	return parse_transport(skb, ETH_HLEN + sizeof(h), p);
}

static __always_inline int parse6(struct __sk_buff *skb, const struct sandbox *s, struct packet *p)
{
	struct ipv6hdr h;
	if (bpf_skb_load_bytes(skb, ETH_HLEN, &h, sizeof(h)) || h.version != 6)
		return WHY_SHORT;
	p->family = AF_INET6;
	p->protocol = h.nexthdr; // an extension header is no protocol that we know
	__builtin_memcpy(p->dst, &h.daddr, 16);
	if (differs((__u8 *)&h.saddr, s->ip6, 16))
		return WHY_SPOOFED;
	if (h.nexthdr == IPPROTO_FRAGMENT)
		return WHY_FRAGMENT;
	return parse_transport(skb, ETH_HLEN + sizeof(h), p);
}

// parse checks who sent the frame, too.
static __always_inline int parse(struct __sk_buff *skb, const struct sandbox *s, struct packet *p)
{
	struct ethhdr eth;
	if (bpf_skb_load_bytes(skb, 0, &eth, sizeof(eth)))
		return WHY_SHORT;
	if (differs(eth.h_source, s->mac, 6))
		return WHY_SPOOFED;
	if (skb->vlan_present || differs(eth.h_dest, host_mac, 6))
		return WHY_NOT_IP; // broadcast, ARP: neighbours are permanent on both sides
	if (eth.h_proto == bpf_htons(ETH_P_IP))
		return parse4(skb, s, p);
	if (eth.h_proto == bpf_htons(ETH_P_IPV6))
		return parse6(skb, s, p);
	return WHY_NOT_IP;
}

static __always_inline int is_always_denied(const struct packet *p)
{
	if (p->family == AF_INET) {
		struct fixed4 key = { .bits = 32, .ip = p->dst4 };
		return bpf_map_lookup_elem(&always4, &key) != 0;
	}
	struct fixed6 key = { .bits = 128 };
	__builtin_memcpy(key.ip, p->dst, 16);
	return bpf_map_lookup_elem(&always6, &key) != 0;
}

static __always_inline struct rules *find(const struct packet *p, __u32 gen)
{
	if (p->family == AF_INET) {
		struct key4 key = { .bits = 64, .gen = gen, .ip = p->dst4 };
		return bpf_map_lookup_elem(&rules4, &key);
	}
	struct key6 key = { .bits = 160, .gen = gen };
	__builtin_memcpy(key.ip, p->dst, 16);
	return bpf_map_lookup_elem(&rules6, &key);
}

static __always_inline int is_learned(const struct sandbox *s, const struct packet *p, __u8 slot)
{
	struct name_key key = { .naming = s->naming, .serial = s->serial };
	__builtin_memcpy(key.ip, p->dst, 16);
	struct name_row *row = bpf_map_lookup_elem(&names, &key);
	if (!row)
		return 0;
	bpf_spin_lock(&row->lock);
	struct name_key of = row->key;
	struct name n = row->of;
	bpf_spin_unlock(&row->lock);
	if (of.naming != key.naming || of.serial != key.serial || differs(of.ip, key.ip, 16))
		return 0;
	return n.until > bpf_ktime_get_boot_ns() && n.slots >> (slot & 63) & 1;
}

// judge asks the policy's rules for TCP and UDP.
static __always_inline struct verdict judge(const struct sandbox *s, const struct packet *p)
{
	struct verdict v = { .action = ACT_DENY, .reason = WHY_FIXED };
	if (is_always_denied(p))
		return v;
	v.reason = WHY_NOPOLICY;
	if (!s->gen)
		return v;
	v.reason = WHY_RULE;
	struct rules *all = find(p, s->gen);
	if (!all)
		return v;
	v.action = all->fallback;
	for (__u32 i = 0; i < MAX_RULES && i < all->n; i++) {
		const struct rule *r = &all->rule[i];
		if (r->protocol != p->protocol || p->dport < r->low || p->dport > r->high)
			continue;
		v.action = r->action;
		if (r->action != ACT_LEARN)
			return v;
		v.action = ACT_ALLOW;
		if (!is_learned(s, p, r->slot)) {
			v.reason = WHY_UNLEARNED;
			v.action = r->unlearned;
		}
		return v;
	}
	return v;
}

// is_netds reports whether a packet belongs to a connection that the proxy has:
// a changed policy must not send the rest of it elsewhere.
static __always_inline int is_netds(struct __sk_buff *skb, const struct sandbox *s, const struct packet *p)
{
	struct bpf_sock_tuple t = {};
	__u32 size = sizeof(t.ipv4);
	if (p->family == AF_INET) {
		t.ipv4.saddr = s->ip4;
		t.ipv4.daddr = p->dst4;
		t.ipv4.sport = bpf_htons(p->sport);
		t.ipv4.dport = bpf_htons(p->dport);
	} else {
		size = sizeof(t.ipv6);
		__builtin_memcpy(t.ipv6.saddr, s->ip6, 16);
		__builtin_memcpy(t.ipv6.daddr, p->dst, 16);
		t.ipv6.sport = bpf_htons(p->sport);
		t.ipv6.dport = bpf_htons(p->dport);
	}
	struct bpf_sock *sk = bpf_skc_lookup_tcp(skb, &t, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return 0;
	int ours = sk->state != BPF_TCP_LISTEN;
	bpf_sk_release(sk);
	return ours;
}

// is_beyond says whether a number that is open would be one more than may be.
static __always_inline int is_beyond(__u32 serial, __s64 most)
{
	__u64 *o = bpf_map_lookup_elem(&opened, &serial), *c = bpf_map_lookup_elem(&closed, &serial);
	return !o || !c || (__s64)(*o - *c) >= most;
}

static __always_inline void add_opened(__u32 serial)
{
	__u64 *o = bpf_map_lookup_elem(&opened, &serial);
	if (o)
		__sync_fetch_and_add(o, 1);
}

static __always_inline __u32 way_out(void)
{
	__u32 zero = 0, *link = bpf_map_lookup_elem(&uplink, &zero);
	return link ? *link : 0;
}

static __always_inline struct flow_key key_of(const struct sandbox *s, const struct packet *p)
{
	struct flow_key key = { .serial = s->serial, .sport = p->sport, .dport = p->dport, .protocol = p->protocol };
	__builtin_memcpy(key.dst, p->dst, 16);
	return key;
}

static __always_inline struct flow *flow_of(const struct sandbox *s, const struct packet *p)
{
	struct flow_key key = key_of(s, p);
	return bpf_map_lookup_elem(&flows, &key);
}

// touch says that a flow was seen. The clock costs as much as a lookup: it is read once a
// tick.
static __always_inline void touch(struct flow *f)
{
	__u16 tick = bpf_jiffies64();
	if (f->tick == tick)
		return;
	f->tick = tick;
	f->last = bpf_ktime_get_boot_ns();
}

// begin makes a flow's entry, if the sandbox may have one more.
static __always_inline struct flow *begin(struct counters *c, const struct flow_key *key, struct verdict v)
{
	__s64 most = is_beyond(ALL, MAX_FLOWS / 2) ? SCARCE_EACH : MAX_EACH;
	if (is_beyond(key->serial, most))
		return 0;
	__u64 now = bpf_ktime_get_boot_ns();
	struct flow f = { .began = now, .last = now, .tick = bpf_jiffies64(), .action = v.action, .reason = v.reason, .straight = way_out() != 0 };
	if (!bpf_map_update_elem(&flows, key, &f, BPF_NOEXIST)) {
		add_opened(key->serial);
		add_opened(ALL);
		c->flows++;
	}
	return bpf_map_lookup_elem(&flows, key); // perhaps another CPU's; none when there is no room
}

// track counts a packet that may leave for its flow, and says which way. It reports 0
// when there can't be another flow. A connection that begins anew with the ports of one that has ended a
// moment ago is told as one with it.
static __always_inline __u32 track(const struct sandbox *s, struct counters *c, const struct packet *p, struct verdict v, __u32 bytes)
{
	struct flow_key key = key_of(s, p);
	struct flow *f = bpf_map_lookup_elem(&flows, &key);
	if (!f)
		f = begin(c, &key, v);
	if (!f)
		return 0;
	touch(f);
	__sync_fetch_and_add(&f->sent, bytes);
	if (p->flags & SYN)
		f->fin_sent = f->fin_received = f->reset = 0;
	if (p->flags & FIN)
		f->fin_sent = 1;
	if (p->flags & RST)
		f->reset = 1;
	if (f->straight && !way_out())
		f->straight = 0; // and so it stays: whom it talks to has seen another address by then
	return f->straight ? STRAIGHT : MARK_ALLOW;
}

// What a packet to a sandbox is.
enum back {
	BACK_NONE,  // belongs to no flow
	BACK_FLOW,  // read
	BACK_REST,  // a later fragment, which is nothing without the first
	BACK_ERROR, // quotes a packet that is read
};

// parse_back reads of a packet to a sandbox whom it is from, as if it went there.
static __always_inline enum back parse_back(struct __sk_buff *skb, struct packet *p)
{
	__u32 at = ETH_HLEN;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		struct iphdr h;
		if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)))
			return BACK_NONE;
		if (h.frag_off & bpf_htons(0x1fff))
			return BACK_REST;
		p->family = AF_INET;
		p->protocol = h.protocol;
		p->dst4 = h.saddr;
		p->dst[10] = p->dst[11] = 0xff;
		__builtin_memcpy(p->dst + 12, &h.saddr, 4);
		at += h.ihl * 4;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		struct ipv6hdr h;
		if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)))
			return BACK_NONE;
		at += sizeof(h);
		p->family = AF_INET6;
		p->protocol = h.nexthdr;
		__builtin_memcpy(p->dst, &h.saddr, 16);
		struct {
			__u8 nexthdr, reserved;
			__be16 offset;
			__be32 id;
		} f;
		if (h.nexthdr == IPPROTO_FRAGMENT) {
			if (bpf_skb_load_bytes(skb, at, &f, sizeof(f)))
				return BACK_NONE;
			if (f.offset & bpf_htons(0xfff8))
				return BACK_REST;
			at += sizeof(f);
			p->protocol = f.nexthdr;
		}
	} else {
		return BACK_NONE;
	}
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return BACK_NONE;
	__be16 ports[2];
	if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
		return BACK_NONE;
	p->sport = bpf_ntohs(ports[1]);
	p->dport = bpf_ntohs(ports[0]);
	if (p->protocol == IPPROTO_TCP && bpf_skb_load_bytes(skb, at + 13, &p->flags, 1))
		return BACK_NONE;
	return BACK_FLOW;
}

// parse_quoted reads of an ICMP error what packet of the sandbox's it is about: without
// it nobody would learn how large packets may be. parse_back has read what it is.
static __always_inline int parse_quoted(struct __sk_buff *skb, const struct sandbox *s, struct packet *p)
{
	__u32 at = ETH_HLEN;
	__u8 type;
	if (p->family == AF_INET && p->protocol == IPPROTO_ICMP) {
		struct iphdr h;
		if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)))
			return 0;
		at += h.ihl * 4;
		if (bpf_skb_load_bytes(skb, at, &type, 1) || (type != 3 && type != 11 && type != 12)) // unreachable, time, parameter
			return 0;
		at += 8;
		if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)) || h.saddr != s->ip4)
			return 0;
		at += sizeof(h); // a sandbox sends no options
		p->protocol = h.protocol;
		__builtin_memcpy(p->dst + 12, &h.daddr, 4);
	} else if (p->family == AF_INET6 && p->protocol == IPPROTO_ICMPV6) {
		struct ipv6hdr h;
		at += sizeof(h);
		if (bpf_skb_load_bytes(skb, at, &type, 1) || type < 1 || type > 4) // unreachable, too big, time, parameter
			return 0;
		at += 8;
		if (bpf_skb_load_bytes(skb, at, &h, sizeof(h)) || differs((__u8 *)&h.saddr, s->ip6, 16))
			return 0;
		at += sizeof(h);
		p->protocol = h.nexthdr;
		__builtin_memcpy(p->dst, &h.daddr, 16);
	} else {
		return 0;
	}
	if (p->protocol != IPPROTO_TCP && p->protocol != IPPROTO_UDP)
		return 0;
	__be16 ports[2];
	if (bpf_skb_load_bytes(skb, at, ports, sizeof(ports)))
		return 0;
	p->sport = bpf_ntohs(ports[0]);
	p->dport = bpf_ntohs(ports[1]);
	return 1;
}

// track_back counts a packet that reaches a sandbox for its flow.
static __always_inline void track_back(struct flow *f, const struct packet *p, __u32 bytes)
{
	touch(f);
	__sync_fetch_and_add(&f->received, bytes);
	if (p->flags & FIN)
		f->fin_received = 1;
	if (p->flags & RST)
		f->reset = 1;
}

// is_unwanted finds datagrams of whom the sandbox may not send any to: what tracks
// connections lets answers in long after a policy has closed. Of TCP the sandbox's
// next packet ends the connection. What netd answers itself comes from port 53.
static __always_inline int is_unwanted(const struct sandbox *s, const struct packet *p)
{
	if (p->protocol != IPPROTO_UDP || p->dport == 53)
		return 0;
	struct verdict v = judge(s, p);
	return v.action != ACT_ALLOW && v.action != ACT_AUDIT;
}

// admit says whether a packet may reach a sandbox, and counts one that does, for its flow,
// too. What netd's own sockets answer has none.
static __always_inline int admit(struct __sk_buff *skb, const struct sandbox *s, __u32 link, enum back is, const struct packet *p, struct flow *f)
{
	struct counters *c = bpf_map_lookup_elem(&counts, &link);
	if (!c)
		return 0;
	if (is == BACK_FLOW && is_unwanted(s, p)) {
		c->denied++;
		return 0;
	}
	if (!within_limits(s, 1, skb->len)) {
		c->throttled++;
		return 0;
	}
	c->received_packets++;
	c->received_bytes += skb->len;
	if (is == BACK_FLOW && f)
		track_back(f, p, skb->len);
	return 1;
}

// is_neighbourly: routers and neighbours are looked for by every IPv6 stack, which
// is no news to anybody.
static __always_inline int is_neighbourly(const struct packet *p)
{
	return p->family == AF_INET6 && p->protocol == IPPROTO_ICMPV6 && p->code >= 133 && p->code <= 143;
}

// decide gives the mark that a packet gets, STRAIGHT, or 0 for one that ends here.
static __always_inline __u32 decide(struct __sk_buff *skb, const struct sandbox *s, struct counters *c)
{
	struct packet p = {};
	struct verdict v = { .action = ACT_DENY };
	int malformed = parse(skb, s, &p);
	if (malformed >= 0) {
		c->malformed++;
		v.reason = malformed;
		if (malformed != WHY_NOT_IP && !(malformed == WHY_SPOOFED && p.protocol == IPPROTO_ICMPV6))
			tell(s, c, &p, v);
		return 0;
	}
	// No ICMP leaves. An error carries what it says it quotes to whomever it likes, and
	// a host that is no router has none to send that anybody needs.
	if (p.protocol == IPPROTO_ICMP || p.protocol == IPPROTO_ICMPV6) {
		c->denied++;
		v.reason = WHY_ICMP;
		if (!is_neighbourly(&p))
			tell(s, c, &p, v);
		return 0;
	}
	if (!within_limits(s, 0, skb->len)) {
		c->throttled++;
		return 0;
	}
	if (p.dport == 53)
		return MARK_LOCAL;
	v = judge(s, &p);
	if (v.action == ACT_PROXY && p.protocol == IPPROTO_TCP) {
		c->flows += begins(&p);
		return MARK_LOCAL;
	}
	if (v.action != ACT_ALLOW && v.action != ACT_AUDIT) {
		v.action = ACT_DENY;
		c->denied++;
		tell(s, c, &p, v);
		return MARK_DENY;
	}
	if (s->flags & SANDBOX_PROXIED && p.protocol == IPPROTO_TCP && !begins(&p) && is_netds(skb, s, &p))
		return MARK_LOCAL;
	__u32 way = track(s, c, &p, v, skb->len);
	if (way)
		return way;
	v.action = ACT_DENY;
	v.reason = WHY_FLOWS;
	c->denied++;
	tell(s, c, &p, v);
	return MARK_DENY;
}

SEC("tc")
int from_sandbox(struct __sk_buff *skb)
{
	__u32 link = skb->ifindex;
	struct sandbox s;
	struct counters *c = bpf_map_lookup_elem(&counts, &link);
	if (!c || !find_sandbox(link, &s))
		return TC_ACT_SHOT;
	c->sent_packets++;
	c->sent_bytes += skb->len;
	__u32 mark = decide(skb, &s, c);
	if (!mark)
		return TC_ACT_SHOT;
	if (mark == STRAIGHT)
		return bpf_redirect_peer(way_out(), 0);
	skb->mark = mark;
	return TC_ACT_OK;
}

SEC("tc")
int to_sandbox(struct __sk_buff *skb)
{
	__u32 link = skb->ifindex;
	struct sandbox s;
	if (!find_sandbox(link, &s))
		return TC_ACT_SHOT;
	struct packet p = {};
	enum back is = parse_back(skb, &p);
	struct flow *f = is == BACK_FLOW ? flow_of(&s, &p) : 0;
	return admit(skb, &s, link, is, &p, f) ? TC_ACT_OK : TC_ACT_SHOT;
}

// load_destination says whether a packet is for a sandbox's own address, and reads it.
static __always_inline int load_destination(struct __sk_buff *skb, struct address *to)
{
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		__be32 ip;
		if (bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct iphdr, daddr), &ip, 4))
			return 0;
		to->ip[10] = to->ip[11] = 0xff;
		__builtin_memcpy(to->ip + 12, &ip, 4);
		return (ip & mask4) == net4;
	}
	__u32 ip[4];
	if (skb->protocol != bpf_htons(ETH_P_IPV6) || bpf_skb_load_bytes(skb, ETH_HLEN + __builtin_offsetof(struct ipv6hdr, daddr), ip, 16))
		return 0;
	__builtin_memcpy(to->ip, ip, 16);
	return ip[0] == net6[0] && ip[1] == net6[1];
}

// has says whether an address is a sandbox's.
static __always_inline int has(const struct sandbox *s, const struct address *a)
{
	__u32 asked[4], six[4];
	__builtin_memcpy(asked, a->ip, 16);
	__builtin_memcpy(six, s->ip6, 16);
	if (!asked[0] && !asked[1] && asked[2] == bpf_htonl(0xffff))
		return asked[3] == s->ip4;
	return asked[0] == six[0] && asked[1] == six[1] && asked[2] == six[2] && asked[3] == six[3];
}

// readdress gives a frame the addresses that it has on a sandbox's link.
static __always_inline long readdress(struct __sk_buff *skb, const struct sandbox *s)
{
	__u8 macs[12];
#pragma unroll
	for (int i = 0; i < 6; i++) {
		macs[i] = s->mac[i];
		macs[6 + i] = host_mac[i];
	}
	return bpf_skb_store_bytes(skb, 0, macs, sizeof(macs), 0);
}

// from_uplink lets in what is of a flow that left straight. The host has put fragments
// together before it let them in: of the later ones nothing is left to ask.
SEC("tc")
int from_uplink(struct __sk_buff *skb)
{
	struct address to = {};
	if (!load_destination(skb, &to))
		return TC_ACT_OK; // for netd itself, or translated in the namespace
	__u32 *known = bpf_map_lookup_elem(&addresses, &to);
	__u32 link = known ? *(volatile __u32 *)known : 0; // read once: it may be another's
	struct sandbox s;
	if (!find_sandbox(link, &s) || !has(&s, &to))
		return TC_ACT_SHOT;
	struct packet p = {};
	enum back is = parse_back(skb, &p);
	if (is == BACK_NONE && parse_quoted(skb, &s, &p))
		is = BACK_ERROR;
	struct flow *f = is == BACK_FLOW || is == BACK_ERROR ? flow_of(&s, &p) : 0;
	if (is != BACK_REST && !(f && f->straight))
		return TC_ACT_SHOT;
	if (readdress(skb, &s))
		return TC_ACT_SHOT;
	if (!peer_counted)
		return bpf_redirect(link, 0); // to_sandbox does the rest
	if (!admit(skb, &s, link, is, &p, f))
		return TC_ACT_SHOT;
	return bpf_redirect_peer(link, 0);
}

SEC("sk_lookup")
int pick(struct bpf_sk_lookup *ctx)
{
	__u32 slot;
	if (ctx->family == AF_INET) {
		if ((ctx->remote_ip4 & mask4) != net4)
			return SK_PASS;
		slot = SOCK_PROXY4;
	} else {
		if (ctx->remote_ip6[0] != net6[0] || ctx->remote_ip6[1] != net6[1])
			return SK_PASS;
		slot = SOCK_PROXY6;
	}
	if (ctx->local_port == 53)
		slot += ctx->protocol == IPPROTO_TCP ? SOCK_DNS_TCP4 : SOCK_DNS_UDP4;
	else if (ctx->protocol != IPPROTO_TCP)
		return SK_DROP;
	struct bpf_sock *sk = bpf_map_lookup_elem(&sockets, &slot);
	if (!sk)
		return SK_DROP;
	long failed = bpf_sk_assign(ctx, sk, 0);
	bpf_sk_release(sk);
	return failed ? SK_DROP : SK_PASS;
}

char __license[] SEC("license") = "Dual BSD/GPL";
