/* SPDX-License-Identifier: GPL-2.0 */
/* Maps, and the state that is kept of a connection.
 *
 * The loader joins the fragments into one text and passes, by -D: OFF_* and SIZE_* (kernel offsets from BTF),
 * RING_PAGES, RING_WAKE_BYTES, COPY_LIMIT, FOLLOW, STOP, and the switches HOOK_SYS_EXIT, TARGET_ALL, TARGET_CGROUPS,
 * TARGET_COMMS, FILTER_PORTS, FILTER_HOSTS. */

#define AF_UNIX 1
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_MPTCP 262

#define TCP_ESTABLISHED 1
#define TCP_SYN_SENT 2
#define TCP_FIN_WAIT1 4
#define TCP_CLOSE 7
#define TCP_LAST_ACK 9

/* Bytes and calls of no known protocol that are copied before a connection is left alone: enough for any request
 * line or ClientHello, few enough that a bulk transfer costs nothing. */
#define UNKNOWN_BYTES_LIMIT 4096
#define UNKNOWN_CALLS_LIMIT 24

enum conn_state {
	CONN_UNDECIDED, /* content is copied up to the limits above */
	CONN_KNOWN,     /* begins like a protocol that is decoded: content is copied */
	CONN_IGNORED,   /* user space has said: nothing to see */
};

struct conn {
	u64 id;
	u64 sock;
	u32 inode;
	u32 pid;
	u32 egress_count; /* used where TCP's positions cannot be: AF_UNIX, MPTCP, kTLS */
	u32 ingress_count;
	u16 unknown_bytes;
	u8 unknown_calls;
	u8 state;
	u8 family;
	u8 counted;
	u8 connected;
	u8 announced; /* the socket event has reached the ring buffer */
	u8 closed;    /* TCP has closed; a call that was under way may yet be reported */
	u8 tls;       /* TLS records were seen to begin on it */
	u8 tied;      /* a session is known to speak through it */
	u8 tunnel;    /* a CONNECT passed: what follows may be TLS */
	u8 probed;    /* its process had TLS probes when it was first used */
};

BPF_RINGBUF_OUTPUT(events, RING_PAGES);
BPF_PERCPU_ARRAY(counters, u64, COUNT_MAX);
/* tgid -> TARGET_* flags. */
BPF_HASH(targets, u32, u8, 65536);
/* LRU: a leaked entry (an AF_UNIX end whose close was not seen) must never make the map full. */
BPF_TABLE("lru_hash", u64, struct conn, conns, 65536);
/* conn id -> 1: user space wants no more of it. */
BPF_TABLE("lru_hash", u64, u8, verdicts, 16384);

#define TARGET_BY_NAME 1   /* pid, comm or command, or a child of one */
#define TARGET_BY_CGROUP 2 /* for as long as it stays in the cgroup */
#define TARGET_REASONS 3
#define TARGET_PROBED 4 /* user space has placed TLS probes in it */
#define TARGET_BORN 8   /* forked from such a one, and not looked at yet */

BPF_ARRAY(points, struct point, 8192);
/* pid -> time of the event that tells of its last stop. Whoever finds apitrace dead lets these go (stops.py). */
BPF_HASH(stopped, u32, u64, 4096);

static __always_inline void count(u32 what, u64 n)
{
	u64 *value = counters.lookup(&what);
	if (value)
		*value += n;
}

/* An id of a connection or session. Unique: no two of one CPU can be made in the same nanosecond. */
static __always_inline u64 fresh_id(void)
{
	return bpf_ktime_get_ns() << 6 | (bpf_get_smp_processor_id() & 63);
}

#define READ_KERNEL(destination, base, offset) \
	bpf_probe_read_kernel(&(destination), sizeof(destination), (void *)((u64)(base) + (offset)))

/* Limit a 64-bit length. The barrier keeps the compiler from proving the bound away, or comparing a copy: the
 * verifier must see it on the register that is used. */
#define AT_MOST(value, bound) \
	do { \
		asm volatile("" : "+r"(value)); \
		if ((value) > (bound)) \
			(value) = (bound); \
	} while (0)

static __always_inline u64 read_pointer(u64 base, u32 offset)
{
	u64 value = 0;
	READ_KERNEL(value, base, offset);
	return value;
}
