/* SPDX-License-Identifier: GPL-2.0 */
/* Bytes into the ring buffer.
 *
 * Records come in fixed size classes, because bpf_ringbuf_reserve takes a constant; each is written in place, so
 * there is no scratch buffer that another thread could overwrite. Lengths are limited with min, never with a mask:
 * a mask would turn 8192 into 0. The reader is not woken for an event; it looks every 20 ms, and is woken early
 * only after much has been submitted. */

#define RB_NO_WAKEUP 1
#define RB_FORCE_WAKEUP 2

/* Room for data in each size class. Powers of two, because buffers of programs are: a read of 8192 bytes fills one. From
 * small ones up, because most messages are: with a least class of 256 bytes the ring held a third as many of HTTP/2's
 * short frames. The time that a call takes is the same. */
#define CLASS_1 64
#define CLASS_2 128
#define CLASS_3 256
#define CLASS_4 512
#define CLASS_5 1024
#define CLASS_6 2048
#define CLASS_7 4096
#define CLASS_8 8192
#define CLASS_9 16384
#define CLASS_10 32768
#define CLASS_11 65536
#define FEW CLASS_5

/* Bytes submitted by this CPU since it last woke the reader. (bcc has no way to ask the ring buffer itself.) */
BPF_PERCPU_ARRAY(submitted, u64, 1);

static __always_inline void submit(void *record, u64 size)
{
	u32 zero = 0;
	u64 flags = RB_NO_WAKEUP;
	u64 *bytes = submitted.lookup(&zero);
	if (bytes) {
		*bytes += size;
		if (*bytes > RING_WAKE_BYTES) {
			*bytes = 0;
			flags = RB_FORCE_WAKEUP;
		}
	}
	count(COUNT_EVENTS, 1);
	events.ringbuf_submit(record, flags);
}

static __always_inline void lost(u32 bytes)
{
	count(COUNT_RING_FULL, 1);
	count(COUNT_RING_BYTES, bytes);
}

/* Inlined, so `room` is the constant that the kernel wants; a macro may not hold a map function. */
static __always_inline struct chunk_event *reserve(u64 room)
{
	return events.ringbuf_reserve(sizeof(struct chunk_event) + room);
}

/* What the pieces of one call have in common. */
struct call {
	u64 conn;
	u64 at;
	u64 pid_tgid;
	u32 seq;   /* position of the next byte to emit */
	u32 left;  /* bytes of the call still to be accounted for */
	u32 limit; /* of these, how many may be copied */
	u8 flags;
};

static __always_inline void fill(struct chunk_event *record, struct call *call, u32 len, u32 missing)
{
	record->head.type = EVENT_CHUNK;
	record->head.flags = call->flags;
	record->head.reserved = 0;
	record->head.pid = call->pid_tgid >> 32;
	record->head.tid = (u32)call->pid_tgid;
	record->head.len = len;
	record->head.at = call->at;
	record->head.conn = call->conn;
	record->seq = call->seq;
	record->missing = missing;
}

/* Bytes that went by without their content, or the end of the stream. */
static __always_inline void emit_empty(struct call *call)
{
	struct chunk_event *record = reserve(0);
	if (!record) {
		lost(call->left);
		return;
	}
	fill(record, call, 0, call->left);
	submit(record, sizeof(*record));
}

/* Emit up to `room` bytes, a constant once this is inlined, of a call whose bytes lie in one buffer. */
static __always_inline void emit_class(struct call *call, u64 from, u64 room)
{
	struct chunk_event *record = reserve(room);
	if (!record) {
		lost(call->left);
		return;
	}
	u64 size = call->limit;
	AT_MOST(size, room);
	bool fault = bpf_probe_read_user(record + 1, size, (void *)from) != 0;
	if (fault)
		size = 0;
	fill(record, call, size, fault || size == call->limit ? call->left - (u32)size : 0);
	submit(record, sizeof(struct chunk_event) + room);
	if (fault) {
		count(COUNT_FAULT, call->left);
		call->limit = 0;
		return;
	}
	call->seq += size;
	call->left -= size;
	call->limit -= size;
}

/* Emit what remains to be copied, call->limit, of a call whose bytes lie in one buffer: at most FEW. */
static __always_inline void emit_few(struct call *call, u64 from)
{
	if (call->limit <= CLASS_1)
		emit_class(call, from, CLASS_1);
	else if (call->limit <= CLASS_2)
		emit_class(call, from, CLASS_2);
	else if (call->limit <= CLASS_3)
		emit_class(call, from, CLASS_3);
	else if (call->limit <= CLASS_4)
		emit_class(call, from, CLASS_4);
	else
		emit_class(call, from, CLASS_5);
}

/* Emit one record of a call whose bytes lie in one buffer. */
static __always_inline void emit_piece(struct call *call, u64 from)
{
	if (call->limit <= FEW)
		emit_few(call, from);
	else if (call->limit <= CLASS_6)
		emit_class(call, from, CLASS_6);
	else if (call->limit <= CLASS_7)
		emit_class(call, from, CLASS_7);
	else if (call->limit <= CLASS_8)
		emit_class(call, from, CLASS_8);
	else if (call->limit <= CLASS_9)
		emit_class(call, from, CLASS_9);
	else if (call->limit <= CLASS_10)
		emit_class(call, from, CLASS_10);
	else
		emit_class(call, from, CLASS_11);
}

/* Calls with several buffers are gathered, so that a message written in ten pieces is one event, not ten. A piece
 * goes at any offset below `room` and has at most `room` bytes, so a record has room for twice that: the verifier
 * can follow this, and not "offset + n <= room". Up to 1024 iovecs (UIO_MAXIOV) are walked, GATHER_STEP in a program
 * run; a tail call goes on with the rest. */
#define GATHER_STEP 48
#define GATHER_1 512
#define GATHER_2 2048
#define GATHER_3 8192
#define GATHER_4 32768
#define GATHER_5 65536

struct iovec {
	u64 base;
	u64 len;
};

/* What is left of a call, between the program runs that emit it. Programs on tracepoints are not preempted. */
struct walk {
	struct call call;
	u64 from;     /* of the bytes, or of the iovecs */
	u64 count;    /* of the iovecs */
	u64 skip;     /* bytes of the current iovec that are done */
	u64 gathered; /* bytes in the current record */
	u64 fault;
};

BPF_PERCPU_ARRAY(walks, struct walk, 1);
/* Large pieces are programs of their own, reached by tail calls: each is compiled and verified once, which keeps the
 * start under a second. The kernel allows 33 tail calls in a row. */
BPF_PROG_ARRAY(programs, 3);

#define PROGRAM_IO 0
#define PROGRAM_GATHER 1
#define PROGRAM_BULK 2

/* A call whose bytes lie in one buffer: one run for most, 16 for COPY_LIMIT (1 MiB). */
int bulk(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	if (!walk)
		return 0;
	u32 before = walk->call.limit;
	emit_piece(&walk->call, walk->from);
	if (walk->call.limit == 0 || walk->call.limit == before)
		return 0;
	walk->from += before - walk->call.limit;
	programs.call(ctx, PROGRAM_BULK);
	return 0;
}

/* Append what the current iovec gives. */
static __always_inline void gather_piece(struct walk *walk, char *data, u64 room)
{
	struct iovec iov = {};
	if (bpf_probe_read_user(&iov, sizeof(iov), (void *)walk->from)) {
		walk->fault = 1;
		return;
	}
	u64 rest = iov.len - walk->skip;
	u64 n = walk->call.limit;
	if (n > rest)
		n = rest;
	AT_MOST(n, room);
	u64 offset = walk->gathered;
	AT_MOST(offset, room - 1);
	if (n && bpf_probe_read_user(data + offset, n, (void *)(iov.base + walk->skip))) {
		walk->fault = 1;
		return;
	}
	walk->gathered = offset + n;
	walk->call.limit -= n;
	walk->skip += n;
	if (n == rest) {
		walk->from += sizeof(struct iovec);
		walk->count--;
		walk->skip = 0;
	}
}

int gather(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct walk *walk = walks.lookup(&zero);
	if (!walk)
		return 0;
	struct call *call = &walk->call;
	struct chunk_event *record;
	u64 room;
	if (call->limit <= GATHER_1) {
		room = GATHER_1;
		record = reserve(2 * GATHER_1);
	} else if (call->limit <= GATHER_2) {
		room = GATHER_2;
		record = reserve(2 * GATHER_2);
	} else if (call->limit <= GATHER_3) {
		room = GATHER_3;
		record = reserve(2 * GATHER_3);
	} else if (call->limit <= GATHER_4) {
		room = GATHER_4;
		record = reserve(2 * GATHER_4);
	} else {
		room = GATHER_5;
		record = reserve(2 * GATHER_5);
	}
	if (!record) {
		lost(call->left);
		return 0;
	}
	/* The loop's state lives in the map, where the verifier knows nothing of it: so every path through an iteration
	 * ends in the same state, and 48 iterations are not 2^48 paths. */
	walk->gathered = 0;
	walk->fault = 0;
	for (int i = 0; i < GATHER_STEP; i++) {
		if (walk->count == 0 || walk->gathered >= room || call->limit == 0 || walk->fault)
			break;
		gather_piece(walk, (char *)(record + 1), room);
	}
	u32 left = call->left - (u32)walk->gathered;
	bool last = walk->fault || call->limit == 0 || walk->count == 0;
	if (walk->fault)
		count(COUNT_FAULT, left);
	fill(record, call, walk->gathered, last ? left : 0);
	submit(record, sizeof(struct chunk_event) + 2 * room);
	call->left = left;
	call->seq += walk->gathered;
	if (!last) {
		programs.call(ctx, PROGRAM_GATHER);
		emit_empty(call); /* only if that was one tail call too many: the rest is a marked gap */
	}
	return 0;
}
