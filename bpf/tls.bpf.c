/* SPDX-License-Identifier: GPL-2.0 */
/* Plaintext, at the boundary of the TLS libraries.
 *
 * A probe is given the number of its point as a cookie; the point says what the function does and in which registers or
 * stack slots its arguments are where the probe sits (placement.py chooses the place by what the kernel makes of the
 * instruction). C functions have an entry and a return probe: data is copied at the return, when a write has moved
 * all that it says and the pages that a read fills are there. In Go there are no return probes (golang.py). */

static __always_inline u64 argument(struct registers *ctx, struct location *where)
{
	const u32 places[] = ARGUMENT_REGISTERS;
	u32 reg = where->reg;
	s32 at = where->at;
	u64 value = 0;
	if (reg == NO_REGISTER)
		return 0;
	/* Nearly all are where C has its first four, which are loaded here; a helper that loads any costs 35 ns. The barrier
	 * keeps the compiler from choosing a register first and loading it then: the verifier refuses that. */
	u64 first = ARGUMENT_1(ctx), second = ARGUMENT_2(ctx), third = ARGUMENT_3(ctx), fourth = ARGUMENT_4(ctx);
	asm volatile("" : "+r"(first), "+r"(second), "+r"(third), "+r"(fourth));
	if (reg == places[0])
		value = first;
	else if (reg == places[1])
		value = second;
	else if (reg == places[2])
		value = third;
	else if (reg == places[3])
		value = fourth;
	else
		bpf_probe_read_kernel(&value, sizeof(value), (void *)((u64)ctx + reg));
	if (at != IN_REGISTER) {
		u64 from = value + at;
		value = 0;
		bpf_probe_read_user(&value, sizeof(value), (void *)from);
	}
	return value;
}

static __always_inline void hit(struct point *point)
{
	__sync_fetch_and_add(&point->hits, 1);
}

/* The point that a target's probe was hit at, counted; NULL: it is nobody's concern. */
static __always_inline struct point *point_hit(u32 number, u32 pid)
{
	struct point *point = points.lookup(&number);
	if (!point || !is_target(pid))
		return NULL;
	hit(point);
	return point;
}

BPF_PROG_ARRAY(probe_programs, 1);
#define PROGRAM_PLAINTEXT 0

/* Threads' entries are made once and kept. */
static __always_inline struct tls_thread *thread_of(u64 key)
{
	struct tls_thread *thread = threads.lookup(&key);
	if (!thread) {
		u32 zero = 0;
		struct tls_thread *empty = no_thread.lookup(&zero);
		if (!empty)
			return NULL;
		threads.update(&key, empty);
		thread = threads.lookup(&key);
	}
	return thread;
}

static __always_inline struct session *session_of(struct session_key *key, u32 point, u64 conn, bool whole)
{
	struct session *session = sessions.lookup(key);
	/* The same object with another socket is another session: the end of the first was not seen. */
	if (session && conn && session->conn && session->conn != conn)
		session = NULL;
	if (!session) {
		struct session fresh = {};
		fresh.id = fresh_id();
		fresh.point = point;
		fresh.whole = whole;
		sessions.update(key, &fresh);
		session = sessions.lookup(key);
	}
	return session;
}

/* Tie a session that does no I/O of its own by the ClientHello that both it and the socket know. */
static __always_inline void tie_by_random(struct session *session, struct session_key *key, struct point *point)
{
	struct random_key random = {};
	if (!read_path(random.bytes, RANDOM_LEN, key->handle, &point->random))
		return;
	u64 *words = (u64 *)random.bytes;
	if (!words[0] && !words[1]) /* no hello yet */
		return;
	random.pid = key->pid;
	u64 *conn = hellos.lookup(&random);
	if (conn) {
		tie(session, key->handle, *conn, TIE_BIO);
		hellos.delete(&random);
	} else if (!session->offered) {
		u64 handle = key->handle;
		randoms.update(&random, &handle);
		session->offered = 1;
	}
}

/* Whether a session's plaintext is worth copying, and how much of it: as for sockets (sockets.bpf.c). */
static __always_inline bool admit_plaintext(struct session *session, struct tls_emission *emission, u64 moved)
{
	u8 *verdict = verdicts.lookup(&session->id);
	if (session->state == CONN_IGNORED || (verdict && *verdict == VERDICT_IGNORE)) {
		session->state = CONN_IGNORED;
		return false;
	}
	if (session->state == CONN_KNOWN)
		return true;
	__builtin_memset(emission->sniff, 0, sizeof(emission->sniff));
	u64 n = moved;
	AT_MOST(n, SNIFF);
	if ((verdict && *verdict == VERDICT_KNOWN) ||
		(bpf_probe_read_user(emission->sniff, n, (void *)emission->from) == 0 &&
			begins_known(emission->sniff, moved))) {
		session->state = CONN_KNOWN;
		return true;
	}
	if (session->unknown_bytes >= UNKNOWN_BYTES_LIMIT) {
		count(COUNT_UNKNOWN_BYTES, moved);
		return false;
	}
	u32 room = UNKNOWN_BYTES_LIMIT - session->unknown_bytes;
	if (emission->call.limit > room)
		emission->call.limit = room;
	session->unknown_bytes += emission->call.limit < 16 ? 16 : emission->call.limit;
	return true;
}

/* A piece of plaintext in one run, and by a tail call the next: as for sockets (emit.bpf.c, bulk). */
int plaintext(struct registers *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct tls_thread *thread = threads.lookup(&pid_tgid);
	if (!thread)
		return 0;
	struct tls_emission *emission = &thread->emission;
	u32 before = emission->call.limit;
	emit_piece(&emission->call, emission->from);
	if (emission->call.limit == 0 || emission->call.limit == before)
		return 0;
	emission->from += before - emission->call.limit;
	probe_programs.call(ctx, PROGRAM_PLAINTEXT);
	return 0;
}

/* With every process a target, --port and --host say whose data may be looked at: nothing is copied of a session whose
 * socket is not known to pass. Of targets that were named it is, and left out by user space if it stays unknown. */
#if defined(TARGET_ALL) && (defined(FILTER_PORTS) || defined(FILTER_HOSTS))
#define ONLY_TIED 1
#else
#define ONLY_TIED 0
#endif

/* Prepare `moved` bytes of a session for the ring buffer. Return whether there is anything to emit. */
static __always_inline bool prepare_plaintext(struct tls_emission *emission, struct session *session,
	struct point *point, u64 handle, u64 from, u64 moved, u64 at)
{
	bool egress = point->kind == POINT_WRITE;
	struct call *call = &emission->call;
	call->at = at ? at : bpf_ktime_get_ns();
	call->conn = session->id;
	call->pid_tgid = bpf_get_current_pid_tgid();
	call->left = moved;
	call->limit = moved < COPY_LIMIT ? moved : COPY_LIMIT;
	call->flags = (egress ? FLAG_EGRESS : 0) | FLAG_PLAINTEXT;
	call->seq = egress ? session->egress_count : session->ingress_count;
	emission->from = from;
	bool admitted = (!ONLY_TIED || session->conn) && admit_plaintext(session, emission, moved);
	if (admitted && !session->announced)
		announce_session(session, handle, call->at, point);
	if (egress)
		session->egress_count += moved;
	else
		session->ingress_count += moved;
	if (admitted && moved > call->limit && session->state == CONN_KNOWN)
		count(COUNT_CALL_LIMIT, moved - call->limit);
	return admitted;
}

static __always_inline void emit_plaintext(struct registers *ctx, struct tls_emission *emission)
{
	if (emission->call.limit <= FEW)
		emit_few(&emission->call, emission->from);
	else
		probe_programs.call(ctx, PROGRAM_PLAINTEXT);
}

#define RECEIVED_SHUTDOWN 2 /* SSL_RECEIVED_SHUTDOWN */

/* A read gave nothing: tell of it, once, if that is because the peer has ended its direction. SSL_read_ex says no more
 * than that it failed, so for it the object must tell. */
static __always_inline void tell_end(
	struct tls_thread *thread, struct tls_frame *frame, struct session *session, struct point *point)
{
	u32 flags = 0;
	if (session->ended || !session->announced)
		return;
	bool told = read_path(&flags, sizeof(flags), frame->handle, &point->shutdown);
	if (told ? !(flags & RECEIVED_SHUTDOWN) : frame->counter != 0)
		return;
	session->ended = 1;
	struct call *call = &thread->emission.call;
	call->at = bpf_ktime_get_ns();
	call->conn = session->id;
	call->pid_tgid = bpf_get_current_pid_tgid();
	call->left = call->limit = 0;
	call->flags = FLAG_PLAINTEXT | FLAG_EOF;
	call->seq = session->ingress_count;
	emit_empty(call);
}

/* A call on a session begins. */
int on_tls_entry(struct registers *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	if (!is_target(pid_tgid >> 32))
		return 0;
	u32 number = bpf_get_attach_cookie(ctx);
	struct point *point = points.lookup(&number);
	if (!point)
		return 0;
	hit(point);
	u64 slot = REGISTER_SP(ctx) + point->stack;
	struct tls_thread *thread = thread_of(pid_tgid);
	if (!thread)
		return 0;
	/* The stack grows down: a call whose return address lies at or below this one's has ended unseen. The depth lies
	 * in the map, of which the verifier knows nothing: so iterations are the same to it. */
	for (int i = 0; i < TLS_DEPTH; i++) {
		if (thread->depth == 0 || frame_at(thread, thread->depth - 1)->slot > slot)
			break;
		thread->depth--;
	}
	if (thread->depth >= TLS_DEPTH) { /* another stack, or recursion: begin anew */
		count(COUNT_TLS_DEPTH, 1);
		thread->depth = 0;
	}
	struct tls_frame *frame = frame_at(thread, thread->depth);
	frame->handle = argument(ctx, &point->handle);
	frame->buffer = argument(ctx, &point->buffer);
	frame->counter = argument(ctx, &point->counter);
	frame->slot = slot;
	frame->conn = 0;
	/* A write is of the time when it began: another thread may read the answer before it returns. */
	frame->at = point->kind == POINT_WRITE ? bpf_ktime_get_ns() : 0;
	frame->point = number;
	frame->kind = point->kind;
	thread->depth++;
	return 0;
}

/* A call on a session has returned. */
int on_tls_return(struct registers *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct tls_thread *thread = threads.lookup(&pid_tgid);
	if (!thread)
		return 0;
	u64 slot = RETURNED_FROM(ctx);
	u32 depth = thread->depth;
	if (depth > TLS_DEPTH)
		depth = 0;
	for (int i = 0; i < TLS_DEPTH; i++) {
		if (depth == 0)
			return 0;
		depth--;
		if (frame_at(thread, depth)->slot == slot)
			break;
	}
	struct tls_frame *frame = frame_at(thread, depth);
	/* It began before the probes were there; or where a call that did is awaited, another one passes (blocked.py),
	 * and calls around it go on. */
	if (frame->slot != slot)
		return 0;
	thread->depth = depth;
	u32 number = frame->point;
	struct point *point = points.lookup(&number);
	if (!point)
		return 0;
	/* What was used inside an inner call was used inside the outer one: TLS through a TLS proxy. */
	struct tls_frame *outer = frame_at(thread, thread->depth - 1);
	if (frame->conn && thread->depth > 0 && !outer->conn)
		outer->conn = frame->conn;
	struct session_key key = {};
	key.handle = frame->handle;
	key.pid = pid_tgid >> 32;
	struct session *session = session_of(&key, number, frame->conn, frame->kind == POINT_HANDSHAKE);
	if (!session)
		return 0;
	if (frame->conn && !session->conn)
		tie(session, key.handle, frame->conn, TIE_NESTED);
	else if (!session->conn)
		tie_by_random(session, &key, point);
	if (frame->kind == POINT_HANDSHAKE)
		return 0;
	s64 moved = (s32)REGISTER_RESULT(ctx);
	if (moved <= 0) {
		if (moved == 0 && frame->kind == POINT_READ)
			tell_end(thread, frame, session, point);
		return 0;
	}
	if (frame->counter)
		moved = read_user_pointer(frame->counter);
	if (moved <= 0 || moved > 0x7fffffff)
		return 0;
	count(COUNT_TLS_CALLS, 1);
	if (prepare_plaintext(&thread->emission, session, point, key.handle, frame->buffer, moved, frame->at))
		emit_plaintext(ctx, &thread->emission);
	return 0;
}

/* A session's end: its address may be another's from now on. */
int on_tls_free(struct registers *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	struct point *point = point_hit(bpf_get_attach_cookie(ctx), pid_tgid >> 32);
	if (!point)
		return 0;
	struct session_key key = {};
	key.handle = argument(ctx, &point->handle);
	key.pid = pid_tgid >> 32;
	struct session *session = sessions.lookup(&key);
	if (!session)
		return 0;
	if (session->announced) {
		struct event *event = events.ringbuf_reserve(sizeof(*event));
		if (event) {
			__builtin_memset(event, 0, sizeof(*event));
			event->type = EVENT_FREED;
			event->pid = key.pid;
			event->tid = (u32)pid_tgid;
			event->at = bpf_ktime_get_ns();
			event->conn = session->id;
			submit(event, sizeof(*event));
		} else {
			lost(0);
		}
	}
	sessions.delete(&key);
	return 0;
}

/* BIO_write inside SSL_write: the record that it is given will be sent. */
int on_bio_write(struct registers *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	u32 number = bpf_get_attach_cookie(ctx);
	struct point *point = points.lookup(&number);
	struct tls_thread *thread = threads.lookup(&pid_tgid);
	if (!point || !thread)
		return 0;
	hit(point);
	u32 depth = thread->depth;
	if (depth == 0 || depth > TLS_DEPTH)
		return 0;
	struct tls_frame *frame = frame_at(thread, depth - 1);
	struct record_key record = {};
	u64 n = (u32)argument(ctx, &point->length);
	AT_MOST(n, RECORD_LEN);
	if (n < 16 || bpf_probe_read_user(record.bytes, n, (void *)argument(ctx, &point->buffer)))
		return 0;
	if (!is_record(record.bytes))
		return 0;
	struct session_key key = {};
	key.handle = frame->handle;
	key.pid = record.pid = pid_tgid >> 32;
	struct session *session = session_of(&key, frame->point, 0, false);
	if (!session || session->conn)
		return 0;
	u64 handle = key.handle;
	records.update(&record, &handle);
	return 0;
}

/* Go: crypto/tls. r14 is the goroutine: the key of what is kept between two probes, since it changes threads. */

struct go_call {
	u64 handle;
	u64 buffer;
};

BPF_TABLE("lru_hash", struct session_key, struct go_call, goroutines, 16384);

/* The connection of a *tls.Conn: tls.Conn -> net.Conn (interface) -> *netFD -> descriptor -> socket. 0: it cannot be
 * told, for it is wrapped in another type; `filtered`: --port or --host leave it out. */
static __always_inline u64 go_connection(struct registers *ctx, u64 tls_conn, struct point *point, bool *filtered)
{
	u64 base = REGISTER_IP(ctx) - point->address;
	u64 table = read_user_pointer(tls_conn) - base;
	if (!table || (table != point->tables[0] && table != point->tables[1]))
		return 0;
	u64 net_fd = read_user_pointer(read_user_pointer(tls_conn + 8));
	u32 fd = 0;
	if (!net_fd || bpf_probe_read_user(&fd, sizeof(fd), (void *)(net_fd + 16)))
		return 0;
	u64 file = socket_file(fd);
	u64 sk = file ? sock_of_file(file) : 0;
	if (!sk)
		return 0;
	struct conn *conn = conns.lookup(&sk);
	if (!conn)
		conn = admit(sk, false);
	if (!conn) {
		*filtered = true;
		return 0;
	}
	if (!conn->announced)
		announce(conn, sk, bpf_ktime_get_ns(), true, 0);
	conn->tied = 1;
	return conn->id;
}

static __always_inline void go_emit(
	struct registers *ctx, struct go_call *call, struct point *point, u32 number, s64 moved)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	bool filtered = false;
	if (moved <= 0 || moved > 0x7fffffff)
		return;
	u64 conn = go_connection(ctx, call->handle, point, &filtered);
	struct tls_thread *thread = thread_of(pid_tgid);
	if (filtered || !thread)
		return;
	struct session_key key = {};
	key.handle = call->handle;
	key.pid = pid_tgid >> 32;
	struct session *session = session_of(&key, number, conn, false);
	if (!session)
		return;
	if (conn && !session->conn)
		tie(session, key.handle, conn, TIE_NESTED);
	count(COUNT_TLS_CALLS, 1);
	if (prepare_plaintext(&thread->emission, session, point, key.handle, call->buffer, moved, 0))
		emit_plaintext(ctx, &thread->emission);
}

/* At a call, or at the function's entry: the arguments are there. */
int on_go_call(struct registers *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u32 number = bpf_get_attach_cookie(ctx);
	struct point *point = point_hit(number, pid);
	if (!point)
		return 0;
	/* The stack check: if it fails the function begins again. */
	if (point->restarts && (REGISTER_FLAGS(ctx) & FLAGS_BELOW_OR_EQUAL))
		return 0;
	struct go_call call = {};
	call.handle = argument(ctx, &point->handle);
	call.buffer = argument(ctx, &point->buffer);
	if (point->counted) { /* on_go_return goes on */
		struct session_key key = {};
		key.handle = GO_GOROUTINE(ctx);
		key.pid = pid;
		goroutines.update(&key, &call);
		return 0;
	}
	go_emit(ctx, &call, point, number, argument(ctx, &point->length));
	return 0;
}

/* Behind the call: the number of bytes is known. */
int on_go_return(struct registers *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u32 number = bpf_get_attach_cookie(ctx);
	struct point *point = point_hit(number, pid);
	if (!point)
		return 0;
	struct session_key key = {};
	key.handle = GO_GOROUTINE(ctx);
	key.pid = pid;
	struct go_call *found = goroutines.lookup(&key);
	if (!found)
		return 0;
	struct go_call call = *found;
	goroutines.delete(&key);
	go_emit(ctx, &call, point, number, argument(ctx, &point->length));
	return 0;
}

/* The dynamic loader has mapped something, or is about to: its hook for debuggers. */
int on_loader(struct registers *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u32 number = bpf_get_attach_cookie(ctx);
	struct point *point = point_hit(number, pid);
	if (!point)
		return 0;
	/* r_debug.r_state is not 0 before the change, and when something goes. */
	u32 state = 0;
	if (point->tables[0])
		bpf_probe_read_user(
			&state, sizeof(state), (void *)(REGISTER_IP(ctx) - point->address + point->tables[0]));
	if (state == 0)
		stop(EVENT_LOADED, pid);
	return 0;
}
