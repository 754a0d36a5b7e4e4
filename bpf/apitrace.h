/* SPDX-License-Identifier: GPL-2.0 */
/* The ABI between the kernel programs and apitrace/probes/events.py: event layouts, enums, limits. Types only.
 *
 * Every event begins with struct event. All fields are in host byte order, but addresses, which stay in network
 * order. `len` counts the payload bytes that follow the fixed part; the ring-buffer record may be longer, because
 * reservations come in fixed size classes. Change a layout here and EVENT_ABI with it: recordings carry it. */
#ifndef APITRACE_H
#define APITRACE_H

#define EVENT_ABI 2

enum event_type {
	EVENT_SOCKET = 1,  /* a socket is seen for the first time */
	EVENT_CHUNK = 2,   /* bytes of one direction of a socket */
	EVENT_STATE = 3,   /* TCP state change of a known socket */
	EVENT_EXEC = 4,    /* a target has called exec */
	EVENT_EXIT = 5,    /* the last thread of a target has ended */
	EVENT_FORK = 6,    /* a target has forked: the child is a target too */
	EVENT_CLOSED = 7,  /* an AF_UNIX socket's last descriptor is being closed */
	EVENT_SESSION = 8, /* a TLS session is seen for the first time, or its socket is known now */
	EVENT_FREED = 9,   /* a TLS session's object was freed */
	EVENT_LOADED = 10, /* a target's dynamic loader has mapped something, or is about to */
	EVENT_BORN = 11,   /* a forked child of a probed target runs its first instructions */
			   /* 64 and up are made in user space, for recordings: see events.py */
};

enum event_flags {
	FLAG_EGRESS = 1,     /* chunk: sent by the traced process; else received */
	FLAG_EOF = 2,        /* chunk: a receive call returned 0; state: both directions are shut */
	FLAG_CONNECTED = 4,  /* socket: its connect() was seen, so the traced process is the client */
	FLAG_COUNTED = 8,    /* socket: positions are our own count (AF_UNIX, MPTCP, kTLS), not TCP's */
	FLAG_PLAINTEXT = 16, /* chunk: of a TLS session, whose id `conn` is */
	FLAG_PROBED = 32,    /* socket: its process had TLS probes when the socket was first used */
	FLAG_WHOLE = 64,     /* session: seen from its handshake on */
	FLAG_STOPPED = 128,  /* exec, loaded, born: the process was stopped, and waits to be let go */
};

struct event {
	__u8 type;
	__u8 flags;
	__u16 reserved;
	__u32 pid; /* tgid */
	__u32 tid;
	__u32 len;
	__u64 at;   /* CLOCK_MONOTONIC, ns */
	__u64 conn; /* unique per connection and capture; 0 for process events */
};

struct socket_event {
	struct event head;
	__u64 sock;          /* kernel address: the key of the verdict map */
	__u64 egress_total;  /* bytes sent on the connection before this call; may be one high (SYN) */
	__u64 ingress_total; /* bytes read on it before this call */
	__u32 egress_seq;    /* position of the next byte to send, before this call */
	__u32 ingress_seq;   /* position of the next byte to read, before this call */
	__u32 inode;
	__u16 family;
	__u16 local_port;
	__u16 remote_port;
	__u16 reserved;
	__u8 local_addr[16];
	__u8 remote_addr[16];
	char comm[16];
	char local_path[108]; /* AF_UNIX; abstract names begin with NUL */
	char remote_path[108];
};

struct chunk_event {
	struct event head;
	__u32 seq;     /* position of the first byte; wraps at 32 bits */
	__u32 missing; /* bytes of the same call after these that were not copied */
};

struct state_event {
	struct event head;
	__u16 old_state;
	__u16 new_state;
	__u32 error;        /* sk_err: ECONNREFUSED, ECONNRESET, ETIMEDOUT, 0 */
	__u32 egress_seq;   /* write_seq */
	__u32 ingress_seq;  /* copied_seq: what the process has read */
	__u32 received_seq; /* rcv_nxt: what the kernel has received */
	__u16 local_port;
	__u16 remote_port;
};

struct exec_event {
	struct event head;
	char comm[16];
	char filename[232];
};

struct fork_event {
	struct event head;
	__u32 child;
	__u32 reserved;
};

/* How a TLS session was tied to its socket. */
enum tie {
	TIE_NONE,
	TIE_NESTED, /* a socket call inside a call on the session; in Go the session's own descriptor */
	TIE_BIO,    /* bytes that both the session and the socket had: a ClientHello's random, or a record */
};

struct session_event {
	struct event head; /* conn: the session's id */
	__u64 handle;      /* address of the object */
	__u64 socket;      /* id of the connection, or 0 */
	__u32 egress_seq;  /* bytes written to it before, as far as that was seen */
	__u32 ingress_seq;
	__u32 point;  /* of the call that it was first seen in */
	__u32 source; /* enum tie */
	__u32 alpn_len;
	__u32 reserved;
	char alpn[16]; /* the protocol negotiated, where the object tells */
	char comm[16];
};

/* Causes of loss and of not looking, counted per CPU: index of the `counters` map. */
enum counter {
	COUNT_EVENTS,        /* events put into the ring buffer */
	COUNT_RING_FULL,     /* reservations that failed */
	COUNT_RING_BYTES,    /* bytes that those would have carried */
	COUNT_FAULT,         /* user memory that could not be read */
	COUNT_CALL_LIMIT,    /* bytes beyond the copy limit of one call */
	COUNT_NO_CONTENT,    /* bytes moved without a user buffer: sendfile, splice, io_uring */
	COUNT_COMPAT,        /* calls of 32-bit processes, skipped */
	COUNT_SOCKETS_FULL,  /* connections for which no state could be kept */
	COUNT_UNKNOWN_BYTES, /* bytes of no known protocol, not copied */
	COUNT_TLS_CALLS,     /* calls on TLS sessions that moved data */
	COUNT_TLS_DEPTH,     /* calls on TLS sessions inside each other, deeper than is followed */
	COUNT_MAX,
};

/* Probe points: what a function does and where its arguments are. The index is the probe's cookie. */

enum point_kind {
	POINT_READ = 1,
	POINT_WRITE = 2,
	POINT_HANDSHAKE = 3,
	POINT_FREE = 4,
	POINT_BIO_WRITE = 5,
	POINT_LOADER = 6,
};

#define NO_REGISTER 0xffff
#define IN_REGISTER 0x7fffffff
#define NO_PATH 0xffffffff

struct location {
	__u32 reg; /* offset of the register in struct registers; NO_REGISTER: there is no such argument */
	__s32 at;  /* IN_REGISTER, or the value is in memory, at the register plus this */
};

/* From an object to a value in it: pointers to follow (at most two), then the value's offset. */
struct path {
	__u32 steps; /* NO_PATH: not known */
	__s32 first;
	__s32 second;
	__s32 last;
};

struct point {
	__u32 kind;
	__u32 stack;    /* the return address is at the stack pointer plus this */
	__u32 counted;  /* Go: the number of bytes is known later, at another point */
	__u32 restarts; /* Go: on the stack check, which begins the function again */
	struct location handle;
	struct location buffer;
	struct location length; /* Go, behind a call: the number of bytes moved */
	struct location counter;
	struct path random; /* of the ClientHello, in the handle's object */
	struct path alpn;   /* pointer to the protocol negotiated */
	struct path alpn_len;
	struct path shutdown; /* SSL_get_shutdown()'s flags */
	__u64 address;        /* in the file */
	__u64 tables[2];      /* Go: interface tables in the file, of connections that can be followed */
	__u64 hits;
};

#endif
