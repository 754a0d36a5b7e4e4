/* SPDX-License-Identifier: GPL-2.0 */
/* TLS sessions: SSL objects (gnutls_session_t, *tls.Conn), and the sockets that they speak through.
 *
 * A session is tied to its socket by one of three proofs, and by nothing less:
 *  - a socket call that is nested in the call on the session, on the same thread, and moves TLS records;
 *  - the ClientHello's random, which the SSL object holds and which passes on the socket in the clear: for programs
 *    that give OpenSSL memory instead of a socket (node, CPython's asyncio). No probe is needed for it but those on
 *    the read and write calls;
 *  - the first bytes of a record that BIO_write was given inside SSL_write, which the next send begins with: for
 *    memory again, if the handshake passed before the capture began.
 * Go's connections hold their socket, which is looked up (tls.bpf.c).
 *
 * The programs on the calls are preemptible. So what they keep between two of their lines lies in `threads`, an entry
 * of which is used by its own thread only. */

#define TLS_DEPTH 4 /* calls inside each other: TLS through a TLS proxy needs two, a handshake inside a read one more */

struct tls_frame {
	u64 handle; /* the SSL object */
	u64 buffer;
	u64 counter; /* where the number of bytes will be, or 0: the result tells it */
	u64 slot;    /* address of the return address: what tells this call from others */
	u64 conn;    /* the connection whose socket was used meanwhile, or 0 */
	u64 at;      /* of a write: when it began; 0: not known */
	u32 point;
	u32 kind;
};

/* A piece of plaintext on its way into the ring buffer. */
struct tls_emission {
	struct call call;
	u64 from;
	u8 sniff[2 * 16];
};

struct tls_thread {
	u32 depth;
	u32 reserved;
	struct tls_frame frames[TLS_DEPTH];
	struct tls_emission emission;
};

BPF_TABLE("lru_hash", u64, struct tls_thread, threads, 16384);
/* The barrier keeps the compiler from dropping the bound that it can prove and the verifier cannot. */
static __always_inline struct tls_frame *frame_at(struct tls_thread *thread, u32 depth)
{
	u64 index = depth;
	asm volatile("" : "+r"(index));
	return &thread->frames[index & (TLS_DEPTH - 1)];
}

/* Zeros: an entry is too large to be made on the stack. */
BPF_ARRAY(no_thread, struct tls_thread, 1);

struct session_key {
	u64 handle;
	u32 pid;
	u32 reserved;
};

struct session {
	u64 id;
	u64 conn; /* 0: not tied */
	u32 egress_count;
	u32 ingress_count;
	u32 point;
	u16 unknown_bytes;
	u8 state;     /* enum conn_state, of the plaintext */
	u8 announced; /* its event has reached the ring buffer */
	u8 source;    /* enum tie */
	u8 offered;   /* its random was put into `randoms` */
	u8 whole;     /* its handshake was seen: nothing was read or written before */
	u8 ended;     /* the peer's close_notify was read */
};

BPF_TABLE("lru_hash", struct session_key, struct session, sessions, 65536);

#define RANDOM_LEN 16 /* of 32: enough not to meet twice */

struct random_key {
	u8 bytes[RANDOM_LEN];
	u32 pid;
	u32 reserved;
};

/* ClientHellos received, by their random -> connection; those that SSL objects are about to send -> handle. */
BPF_TABLE("lru_hash", struct random_key, u64, hellos, 8192);
BPF_TABLE("lru_hash", struct random_key, u64, randoms, 8192);

#define RECORD_LEN 32 /* a header of 5 bytes, and of the shortest record 17 of ciphertext: an alert's is longer */

struct record_key {
	u8 bytes[RECORD_LEN];
	u32 pid;
	u32 reserved;
};

/* Records that BIO_write was given -> handle. */
BPF_TABLE("lru_hash", struct record_key, u64, records, 8192);

static __always_inline bool is_record(u8 *b)
{
	return b[0] >= 0x14 && b[0] <= 0x17 && b[1] == 3 && b[2] <= 4;
}

static __always_inline u64 read_user_pointer(u64 from)
{
	u64 value = 0;
	bpf_probe_read_user(&value, sizeof(value), (void *)from);
	return value;
}

/* Read at the end of a path of pointers. */
static __always_inline bool read_path(void *to, u32 size, u64 base, struct path *path)
{
	if (path->steps == NO_PATH)
		return false;
	if (path->steps > 0)
		base = read_user_pointer(base + path->first);
	if (path->steps > 1 && base)
		base = read_user_pointer(base + path->second);
	return base && bpf_probe_read_user(to, size, (void *)(base + path->last)) == 0;
}

/* `point`: NULL where the object is not at hand. */
static __always_inline void announce_session(struct session *session, u64 handle, u64 at, struct point *point)
{
	struct session_event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lost(0);
		return;
	}
	u64 pid_tgid = bpf_get_current_pid_tgid();
	__builtin_memset(event, 0, sizeof(*event));
	event->head.type = EVENT_SESSION;
	event->head.flags = session->whole ? FLAG_WHOLE : 0;
	event->head.pid = pid_tgid >> 32;
	event->head.tid = (u32)pid_tgid;
	event->head.at = at;
	event->head.conn = session->id;
	event->handle = handle;
	event->socket = session->conn;
	event->egress_seq = session->egress_count;
	event->ingress_seq = session->ingress_count;
	event->point = session->point;
	event->source = session->source;
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	u32 len = 0;
	if (point && read_path(&len, sizeof(len), handle, &point->alpn_len) && len > 0 && len <= sizeof(event->alpn) &&
		read_path(event->alpn, sizeof(event->alpn), handle, &point->alpn))
		event->alpn_len = len;
	submit(event, sizeof(*event));
	session->announced = 1;
}

/* Say that a session speaks through a socket. */
static __always_inline void tie(struct session *session, u64 handle, u64 conn, u8 source)
{
	session->conn = conn;
	session->source = source;
	if (session->announced)
		announce_session(session, handle, bpf_ktime_get_ns(), NULL);
}

/* A record moves on a socket that has no session yet: is it one that a session is known to have made or to expect? */
static __always_inline void tie_by_record(struct conn *conn, u8 *bytes, bool egress, u32 pid)
{
	struct session_key key = {};
	u64 *handle = NULL;
	key.pid = pid;
	if (bytes[0] == 0x16 && bytes[5] == 1) { /* ClientHello: the random comes after 11 bytes */
		struct random_key random = {};
		__builtin_memcpy(random.bytes, bytes + 11, RANDOM_LEN);
		random.pid = pid;
		if (!egress) {
			u64 id = conn->id;
			hellos.update(&random, &id);
			return;
		}
		handle = randoms.lookup(&random);
	}
	if (!handle && egress) {
		struct record_key record = {};
		__builtin_memcpy(record.bytes, bytes, RECORD_LEN);
		record.pid = pid;
		handle = records.lookup(&record);
	}
	if (!handle)
		return;
	key.handle = *handle;
	struct session *session = sessions.lookup(&key);
	if (session && !session->conn) {
		tie(session, key.handle, conn->id, TIE_BIO);
		conn->tied = 1;
	}
}

/* A socket call of a thread that is inside a call on a session. */
static __always_inline void tie_by_nesting(struct conn *conn, u64 pid_tgid)
{
	struct tls_thread *thread = threads.lookup(&pid_tgid);
	if (!thread)
		return;
	u32 depth = thread->depth;
	if (depth == 0 || depth > TLS_DEPTH)
		return;
	frame_at(thread, depth - 1)->conn = conn->id;
	conn->tied = 1;
}
