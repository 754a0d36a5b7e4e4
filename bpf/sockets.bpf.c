/* SPDX-License-Identifier: GPL-2.0 */
/* Socket I/O, connects and ends.
 *
 * From Linux 6.3 the raw tracepoints sock_send_length and sock_recv_length (net/socket.c) fire for every path into
 * a socket, also at the return of a call that was blocked before they were attached; the buffers come from the
 * registers that the task entered the kernel with. Before 6.3, sys_exit gives the same (HOOK_SYS_EXIT).
 *
 * A direction's position is TCP's own: write_seq and copied_seq after the call, less what the call moved. So user
 * space sees a gap instead of guessing. AF_UNIX, MPTCP and kTLS have no such number, and are counted here. */

#define MSG_OOB 0x1
#define MSG_PEEK 0x2
#define MSG_TRUNC 0x20
#define MSG_ERRQUEUE 0x2000
#define IGNORED_FLAGS (MSG_PEEK | MSG_OOB | MSG_ERRQUEUE) /* of receives that take nothing out of the stream */
#define RCV_SHUTDOWN 1
#define SHUTDOWN_BOTH 3

#define VERDICT_IGNORE 1
#define VERDICT_KNOWN 2

static __always_inline u32 read_position(u64 sk, bool egress)
{
	u32 value = 0;
	if (egress)
		READ_KERNEL(value, sk, OFF_tcp_sock_write_seq);
	else
		READ_KERNEL(value, sk, OFF_tcp_sock_copied_seq);
	return value;
}

#define SOCK_DONE 1 /* enum sock_flags: a FIN has been received */

/* A read that takes the last data and the FIN behind them leaves copied_seq one high (net/ipv4/tcp.c, found_fin_ok). */
static __always_inline bool fin_is_read(u64 sk)
{
	u32 received = 0;
	if (!(read_pointer(sk, OFF_sock_skc_flags) >> SOCK_DONE & 1))
		return false;
	READ_KERNEL(received, sk, OFF_tcp_sock_rcv_nxt);
	return received == read_position(sk, false);
}

static __always_inline u32 read_inode(u64 sk)
{
	u64 file = read_pointer(read_pointer(sk, OFF_sock_sk_socket), OFF_socket_file);
	u64 inode = file ? read_pointer(read_pointer(file, OFF_file_f_inode), OFF_inode_i_ino) : 0;
	return (u32)inode;
}

static __always_inline void read_unix_path(char *to, u64 sk)
{
	u64 address = sk ? read_pointer(sk, OFF_unix_sock_addr) : 0;
	if (!address)
		return;
	u32 len = 0;
	READ_KERNEL(len, address, OFF_unix_address_len);
	if (len <= 2) /* sun_family alone: unnamed */
		return;
	u64 size = len - 2;
	AT_MOST(size, 108);
	bpf_probe_read_kernel(to, size, (void *)(address + OFF_unix_address_name + 2));
}

struct addresses {
	u8 local[16];
	u8 remote[16];
	u16 local_port;
	u16 remote_port;
};

static __always_inline void read_addresses(struct addresses *to, u64 sk, u16 family)
{
	u16 port = 0;
	READ_KERNEL(to->local_port, sk, OFF_sock_skc_num);
	READ_KERNEL(port, sk, OFF_sock_skc_dport);
	to->remote_port = __builtin_bswap16(port);
	if (family == AF_INET) {
		bpf_probe_read_kernel(to->local, 4, (void *)(sk + OFF_sock_skc_rcv_saddr));
		bpf_probe_read_kernel(to->remote, 4, (void *)(sk + OFF_sock_skc_daddr));
	} else if (family == AF_INET6) {
		bpf_probe_read_kernel(to->local, 16, (void *)(sk + OFF_sock_skc_v6_rcv_saddr));
		bpf_probe_read_kernel(to->remote, 16, (void *)(sk + OFF_sock_skc_v6_daddr));
	}
}

/* Begin to follow a socket, if it is a stream and passes the filters. */
static __always_inline struct conn *admit(u64 sk, bool connecting)
{
	u16 family = 0, type = 0, protocol = 0;
	READ_KERNEL(family, sk, OFF_sock_skc_family);
	if (family != AF_INET && family != AF_INET6 && family != AF_UNIX)
		return NULL;
	READ_KERNEL(type, sk, OFF_sock_sk_type);
	READ_KERNEL(protocol, sk, OFF_sock_sk_protocol);
	if (type != SOCK_STREAM)
		return NULL;
	if (family != AF_UNIX && protocol != IPPROTO_TCP && protocol != IPPROTO_MPTCP)
		return NULL;
	struct addresses addresses = {};
	read_addresses(&addresses, sk, family);
	if (!passes(family, addresses.local_port, addresses.remote_port, addresses.local, addresses.remote))
		return NULL;
	struct conn fresh = {};
	fresh.id = fresh_id();
	fresh.sock = sk;
	fresh.inode = read_inode(sk);
	fresh.pid = bpf_get_current_pid_tgid() >> 32;
	fresh.family = family;
	fresh.connected = connecting;
#ifdef TARGET_ALL
	fresh.probed = 1;
#else
	u32 pid = fresh.pid;
	u8 *flags = targets.lookup(&pid);
	fresh.probed = flags && (*flags & TARGET_PROBED);
#endif
	fresh.counted = family == AF_UNIX || protocol == IPPROTO_MPTCP ||
			read_pointer(sk, OFF_inet_connection_sock_icsk_ulp_ops) != 0;
	if (conns.update(&sk, &fresh))
		count(COUNT_SOCKETS_FULL, 1);
	return conns.lookup(&sk);
}

/* Tell user space of a socket; `moved` bytes of the call at hand are not counted in the positions. */
static __always_inline void announce(struct conn *conn, u64 sk, u64 at, bool egress, u32 moved)
{
	struct socket_event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lost(0);
		return;
	}
	u64 pid_tgid = bpf_get_current_pid_tgid();
	__builtin_memset(event, 0, sizeof(*event));
	event->head.type = EVENT_SOCKET;
	event->head.flags = (conn->connected ? FLAG_CONNECTED : 0) | (conn->counted ? FLAG_COUNTED : 0) |
			    (conn->probed ? FLAG_PROBED : 0);
	event->head.pid = pid_tgid >> 32;
	event->head.tid = (u32)pid_tgid;
	event->head.at = at;
	event->head.conn = conn->id;
	event->sock = sk;
	event->inode = conn->inode;
	event->family = conn->family;
	struct addresses addresses = {};
	read_addresses(&addresses, sk, conn->family);
	event->local_port = addresses.local_port;
	event->remote_port = addresses.remote_port;
	__builtin_memcpy(event->local_addr, addresses.local, 16);
	__builtin_memcpy(event->remote_addr, addresses.remote, 16);
	if (conn->family == AF_UNIX) {
		read_unix_path(event->local_path, sk);
		read_unix_path(event->remote_path, read_pointer(sk, OFF_unix_sock_peer));
	}
	if (conn->counted) {
		event->egress_seq = conn->egress_count - (egress ? moved : 0);
		event->ingress_seq = conn->ingress_count - (egress ? 0 : moved);
	} else {
		u32 sent_unacked = 0, received = 0;
		event->egress_seq = read_position(sk, true) - (egress ? moved : 0);
		event->ingress_seq = read_position(sk, false) - (egress ? 0 : moved);
		READ_KERNEL(sent_unacked, sk, OFF_tcp_sock_snd_una);
		READ_KERNEL(received, sk, OFF_tcp_sock_rcv_nxt);
		/* bytes_acked and bytes_received count since the connection began. */
		/* Signed: on loopback what this call sends is often acknowledged by now. */
		event->egress_total =
			read_pointer(sk, OFF_tcp_sock_bytes_acked) + (s32)(event->egress_seq - sent_unacked);
		event->ingress_total =
			read_pointer(sk, OFF_tcp_sock_bytes_received) - (s32)(received - event->ingress_seq);
	}
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	submit(event, sizeof(*event));
	conn->announced = 1;
}

/* Where the bytes of a call lie in user memory. `entries` of 0: nowhere that can be read. */
struct buffers {
	u64 base; /* of the bytes, or of the iovec array */
	u64 entries;
	bool vector;
};

#define SNIFF 32       /* bytes looked at: RECORD_LEN */
#define SNIFF_TOKEN 15 /* of these, where a method ends */
#define SNIFF_VECTOR 4 /* buffers that these may be spread over: clients write "GET", " ", "/path" separately */

struct sniff {
	u8 bytes[2 * SNIFF];
};

BPF_PERCPU_ARRAY(sniffs, struct sniff, 1);

#define FRAME_HEADER 9
#define FRAME_HEADERS 1
#define FRAME_RST_STREAM 3
#define FRAME_SETTINGS 4
#define FRAME_PING 6
#define FRAME_WINDOW_UPDATE 8
#define END_HEADERS 0x4
#define HEADERS_FLAGS 0x2d

/* Whether bytes begin like an HTTP/2 frame of a kind that has few forms, or a whole header block: of a connection whose
 * preface was not seen, because it was open before. Length (3 bytes), type, flags, stream (4). */
static __always_inline bool looks_like_frame(u8 *b)
{
	if (b[0] || b[5] & 0x80)
		return false;
	bool whole = !(b[5] | b[6] | b[7] | b[8]); /* about the connection as a whole */
	switch (b[3]) {
	case FRAME_HEADERS:
		return !whole && (b[4] & END_HEADERS) && !(b[4] & ~HEADERS_FLAGS);
	case FRAME_RST_STREAM:
	case FRAME_WINDOW_UPDATE:
		return b[1] == 0 && b[2] == 4 && b[4] == 0;
	case FRAME_SETTINGS:
		return whole && b[1] == 0 && b[4] <= 1;
	case FRAME_PING:
		return whole && b[1] == 0 && b[2] == 8 && b[4] <= 1;
	}
	return false;
}

/* The first bytes of a call, the rest of them zero; NULL if they cannot be read. */
static __always_inline u8 *peek(struct buffers *buffers, u64 moved)
{
	u32 zero = 0;
	struct sniff *sniff = sniffs.lookup(&zero);
	if (!sniff)
		return NULL;
	__builtin_memset(sniff, 0, sizeof(*sniff));
	u8 *b = sniff->bytes;
	if (!buffers->vector) {
		AT_MOST(moved, SNIFF);
		if (bpf_probe_read_user(b, moved, (void *)buffers->base))
			return NULL;
		return b;
	}
	u64 offset = 0;
	for (int i = 0; i < SNIFF_VECTOR; i++) {
		struct iovec iov = {};
		if (i >= buffers->entries || offset >= moved || offset >= SNIFF ||
			bpf_probe_read_user(&iov, sizeof(iov), (void *)(buffers->base + i * sizeof(iov))))
			break;
		u64 n = iov.len < moved - offset ? iov.len : moved - offset;
		AT_MOST(n, SNIFF);
		AT_MOST(offset, SNIFF - 1);
		if (bpf_probe_read_user(b + offset, n, (void *)iov.base))
			break;
		offset += n;
	}
	return b;
}

static __always_inline bool begins_connect(u8 *b)
{
	return b[0] == 'C' && b[1] == 'O' && b[2] == 'N' && b[3] == 'N' && b[4] == 'E' && b[5] == 'C';
}

/* Whether bytes begin like something that is decoded: "HTTP/", the HTTP/2 preface, a frame, or a method and a target. */
static __always_inline bool begins_known(u8 *b, u64 moved)
{
	if (moved >= FRAME_HEADER && looks_like_frame(b))
		return true;
	if (b[0] == 'H' && b[1] == 'T' && b[2] == 'T' && b[3] == 'P' && b[4] == '/')
		return true;
	if (begins_connect(b))
		return true;
	for (int i = 0; i < SNIFF_TOKEN; i++) {
		u8 c = b[i];
		if (c == ' ')
			return i >= 3 && (b[i + 1] == '/' || b[i + 1] == '*' || b[i + 1] == 'h');
		if (!((c >= 'A' && c <= 'Z') || c == '-' || c == '_'))
			return false;
	}
	return false;
}

static __always_inline void find_buffers(struct buffers *to, struct registers *regs)
{
	u64 message = 0;
	to->entries = 0;
	to->vector = false;
	switch (SYSCALL_NUMBER(regs)) {
	case SYS_READ:
	case SYS_WRITE:
	case SYS_SENDTO:
	case SYS_RECVFROM:
		to->base = SYSCALL_ARG2(regs);
		to->entries = 1;
		break;
	case SYS_READV:
	case SYS_WRITEV:
	case SYS_PREADV2:
	case SYS_PWRITEV2:
		to->base = SYSCALL_ARG2(regs);
		to->entries = SYSCALL_ARG3(regs);
		to->vector = true;
		break;
	case SYS_SENDMMSG:
	case SYS_RECVMMSG:
		/* Which of several messages this is cannot be told: then the content is a gap. */
		if (SYSCALL_ARG3(regs) != 1)
			break;
	case SYS_SENDMSG:
	case SYS_RECVMSG:
		message = SYSCALL_ARG2(regs);
		/* struct user_msghdr: msg_iov at 16, msg_iovlen at 24. recvmsg never rewrites them. */
		if (bpf_probe_read_user(&to->base, 8, (void *)(message + 16)) ||
			bpf_probe_read_user(&to->entries, 8, (void *)(message + 24)))
			to->entries = 0;
		to->vector = true;
		break;
	}
	if (to->base == 0) /* an io_uring worker's registers are all zero */
		to->entries = 0;
}

#define S_IFMT 0170000
#define S_IFSOCK 0140000

/* The open file behind a descriptor of the current task if it is a socket, or 0. */
static __always_inline u64 socket_file(u32 fd)
{
	u64 table = read_pointer(read_pointer(bpf_get_current_task(), OFF_task_struct_files), OFF_files_struct_fdt);
	u32 size = 0;
	READ_KERNEL(size, table, OFF_fdtable_max_fds);
	if (fd >= size)
		return 0;
	u64 file = read_pointer(read_pointer(table, OFF_fdtable_fd), fd * 8);
	if (!file)
		return 0;
	u16 mode = 0;
	READ_KERNEL(mode, read_pointer(file, OFF_file_f_inode), OFF_inode_i_mode);
	if ((mode & S_IFMT) != S_IFSOCK)
		return 0;
	return file;
}

static __always_inline u64 sock_of_file(u64 file)
{
	return read_pointer(read_pointer(file, OFF_file_private_data), OFF_socket_sk);
}

/* One I/O call on a socket by a target, as the hook describes it to the program `io`. */
struct io {
	struct registers regs;
	u64 sk;
	s64 moved; /* the call's result */
	u32 flags; /* the MSG_ flags of a receive */
	u32 egress;
};

/* In a map, for it is too large for the stack. Programs on tracepoints are not preempted. */
BPF_PERCPU_ARRAY(ios, struct io, 1);

static __always_inline struct io *read_io(u64 registers)
{
	u32 zero = 0;
	struct io *io = ios.lookup(&zero);
	if (io)
		bpf_probe_read_kernel(&io->regs, sizeof(io->regs), (void *)registers);
	return io;
}

int io(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct io *io = ios.lookup(&zero);
	struct walk *walk = walks.lookup(&zero);
	if (!io || !walk)
		return 0;
	struct registers *regs = &io->regs;
	struct call *call = &walk->call;
	u64 sk = io->sk;
	long moved = io->moved;
	u32 flags = io->flags;
	bool egress = io->egress;
	if (moved < 0 || (moved == 0 && egress) || (flags & IGNORED_FLAGS))
		return 0;
	struct conn *conn = conns.lookup(&sk);
	/* Until TCP closes, an entry is this socket's; then, as with AF_UNIX, it may be of a socket that lay here before. */
	if (conn && (conn->closed || conn->family == AF_UNIX) && conn->inode != read_inode(sk))
		conn = NULL;
	if (!conn)
		conn = admit(sk, false);
	if (!conn)
		return 0;
	call->pid_tgid = bpf_get_current_pid_tgid();
	if (conn->tls && moved > 0)
		tie_by_nesting(conn, call->pid_tgid);
	if (conn->state == CONN_IGNORED)
		return 0;

	call->at = bpf_ktime_get_ns();
	call->conn = conn->id;
	call->left = moved;
	call->limit = moved < COPY_LIMIT ? moved : COPY_LIMIT;
	call->flags = egress ? FLAG_EGRESS : 0;
	if (!conn->counted) {
		call->seq = read_position(sk, egress) - (u32)moved;
		if (!egress && fin_is_read(sk))
			call->seq--;
	} else if (egress) {
		call->seq = conn->egress_count;
		conn->egress_count += moved;
	} else {
		call->seq = conn->ingress_count;
		conn->ingress_count += moved;
	}
	if (moved == 0) {
		u8 shutdown = 0;
		READ_KERNEL(shutdown, sk, OFF_sock_sk_shutdown);
		if (!conn->announced || !(shutdown & RCV_SHUTDOWN)) /* else: a read of no bytes */
			return 0;
		call->flags |= FLAG_EOF;
		emit_empty(call);
		return 0;
	}

	struct buffers buffers = {};
	if (SYSCALL_IS_COMPAT(regs))
		count(COUNT_COMPAT, 1);
	else if (!(flags & MSG_TRUNC)) /* else the bytes were discarded and the buffer is stale */
		find_buffers(&buffers, regs);

	u8 *verdict = verdicts.lookup(&conn->id);
	if (verdict && *verdict == VERDICT_IGNORE) {
		conn->state = CONN_IGNORED;
		return 0;
	}
	u8 *begin = NULL;
	if (buffers.entries && ((conn->state == CONN_UNDECIDED && !(conn->tls && conn->tied)) || conn->tunnel))
		begin = peek(&buffers, moved);
	bool record = begin && is_record(begin);
	if (record && !conn->tls) {
		conn->tls = 1;
		conn->tunnel = 0;
		conn->state = CONN_UNDECIDED;
		conn->unknown_bytes = 0;
		tie_by_nesting(conn, call->pid_tgid);
	}
	if (conn->state == CONN_UNDECIDED) {
		if ((verdict && *verdict == VERDICT_KNOWN && !conn->tls) ||
			(!conn->tls && begin && begins_known(begin, moved))) {
			conn->state = CONN_KNOWN;
			conn->tunnel = begin && begins_connect(begin);
		} else if (conn->unknown_bytes >= UNKNOWN_BYTES_LIMIT) {
			if (!conn->tls)
				count(COUNT_UNKNOWN_BYTES, moved);
			else if (record && !conn->tied)
				tie_by_record(conn, begin, egress, call->pid_tgid >> 32);
			return 0;
		} else {
			u32 room = UNKNOWN_BYTES_LIMIT - conn->unknown_bytes;
			if (call->limit > room)
				call->limit = room;
			/* 16 at least, so that many tiny calls end too. */
			conn->unknown_bytes += call->limit < 16 ? 16 : call->limit;
		}
	}
	if (!conn->announced)
		announce(conn, sk, call->at, egress, moved);
	if (record && !conn->tied) /* user space knows the socket by now */
		tie_by_record(conn, begin, egress, call->pid_tgid >> 32);
	if (buffers.entries == 0) {
		count(COUNT_NO_CONTENT, moved);
		emit_empty(call);
		return 0;
	}
	if ((u64)moved > call->limit && conn->state == CONN_KNOWN)
		count(COUNT_CALL_LIMIT, (u64)moved - call->limit);
	walk->from = buffers.base;
	walk->count = buffers.entries;
	walk->skip = 0;
	if (buffers.vector)
		programs.call(ctx, PROGRAM_GATHER);
	else
		programs.call(ctx, PROGRAM_BULK);
	return 0;
}

/* Most calls of a process that is left alone, or that speaks TLS through a session that is known, need no more than
 * this: found out before the registers are read and `io` is called, which costs twice as much. */
static __always_inline bool is_settled(u64 sk, s64 moved, u64 pid_tgid)
{
	struct conn *conn = conns.lookup(&sk);
	if (!conn || conn->closed || conn->counted || moved == 0)
		return false;
	if (conn->state != CONN_IGNORED && !(conn->tls && conn->tied && conn->state == CONN_UNDECIDED &&
						   conn->unknown_bytes >= UNKNOWN_BYTES_LIMIT))
		return false;
	if (conn->tls)
		tie_by_nesting(conn, pid_tgid);
	return true;
}

#ifndef HOOK_SYS_EXIT

static __always_inline int on_length(struct bpf_raw_tracepoint_args *ctx, bool egress)
{
	s64 moved = (int)ctx->args[1];
	u32 flags = egress ? 0 : (u32)ctx->args[2];
	if (moved < 0 || (flags & IGNORED_FLAGS))
		return 0;
	u64 pid_tgid = bpf_get_current_pid_tgid();
	if (!is_target(pid_tgid >> 32) || is_settled(ctx->args[0], moved, pid_tgid))
		return 0;
	struct io *io = read_io(bpf_task_pt_regs(bpf_get_current_task_btf()));
	if (!io)
		return 0;
	io->sk = ctx->args[0];
	io->moved = moved;
	io->flags = flags;
	io->egress = egress;
	programs.call(ctx, PROGRAM_IO);
	return 0;
}

int on_send_length(struct bpf_raw_tracepoint_args *ctx)
{
	return on_length(ctx, true);
}

int on_recv_length(struct bpf_raw_tracepoint_args *ctx)
{
	return on_length(ctx, false);
}

#else

int on_sys_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 pid_tgid = bpf_get_current_pid_tgid();
	if (!is_target(pid_tgid >> 32))
		return 0;
	struct io *io = read_io(ctx->args[0]);
	if (!io)
		return 0;
	struct registers *regs = &io->regs;
	long moved = ctx->args[1];
	if (moved < 0 || SYSCALL_IS_COMPAT(regs))
		return 0;
	bool egress = false;
	u32 flags = 0;
	switch (SYSCALL_NUMBER(regs)) {
	case SYS_WRITE:
	case SYS_WRITEV:
	case SYS_PWRITEV2:
	case SYS_SENDTO:
	case SYS_SENDMSG:
	case SYS_SENDMMSG:
	case SYS_SENDFILE:
		egress = true;
		break;
	case SYS_READ:
	case SYS_READV:
	case SYS_PREADV2:
		break;
	case SYS_RECVFROM:
	case SYS_RECVMMSG:
		flags = SYSCALL_ARG4(regs);
		break;
	case SYS_RECVMSG:
		flags = SYSCALL_ARG3(regs);
		break;
	default:
		return 0;
	}
	u64 file = socket_file((u32)SYSCALL_ARG1(regs));
	u64 sk = file ? sock_of_file(file) : 0;
	if (!sk || (flags & IGNORED_FLAGS) || is_settled(sk, moved, pid_tgid))
		return 0;
	if (moved > 0 && (SYSCALL_NUMBER(regs) == SYS_SENDMMSG || SYSCALL_NUMBER(regs) == SYS_RECVMMSG)) {
		/* The result counts messages. struct mmsghdr: 64 bytes, msg_len at 56. */
		u64 total = 0;
		for (int i = 0; i < 16; i++) {
			u32 len = 0;
			if (i >= moved)
				break;
			bpf_probe_read_user(&len, 4, (void *)(SYSCALL_ARG2(regs) + i * 64 + 56));
			total += len;
		}
		moved = total;
	}
	io->sk = sk;
	io->moved = moved;
	io->flags = flags;
	io->egress = egress;
	programs.call(ctx, PROGRAM_IO);
	return 0;
}

#endif

/* Connects and ends: inet_sock_set_state (net/ipv4/af_inet.c), often in softirq, where the current task is anybody.
 * The sock pointer is the key, because the port is already 0 at CLOSE. */
int on_tcp_state(struct bpf_raw_tracepoint_args *ctx)
{
	u64 sk = ctx->args[0];
	int old_state = ctx->args[1], new_state = ctx->args[2];
	struct conn *conn;
	if (new_state == TCP_SYN_SENT) { /* in connect(), so in the task's context */
		conns.delete(&sk);
		if (!is_target(bpf_get_current_pid_tgid() >> 32))
			return 0;
		conn = admit(sk, true);
		if (!conn)
			return 0;
		announce(conn, sk, bpf_ktime_get_ns(), true, 0);
	} else {
		conn = conns.lookup(&sk);
		if (!conn)
			return 0;
		if (conn->closed) { /* a closed socket changes no state: its memory is another's now */
			conns.delete(&sk);
			return 0;
		}
		if (new_state != TCP_CLOSE && new_state != TCP_FIN_WAIT1 && new_state != TCP_LAST_ACK &&
			old_state != TCP_SYN_SENT)
			return 0;
	}
	if (conn->announced) {
		struct state_event *event = events.ringbuf_reserve(sizeof(*event));
		if (event) {
			struct addresses addresses = {};
			u8 shutdown = 0;
			u32 error = 0;
			__builtin_memset(event, 0, sizeof(*event));
			READ_KERNEL(shutdown, sk, OFF_sock_sk_shutdown);
			READ_KERNEL(error, sk, OFF_sock_sk_err);
			read_addresses(&addresses, sk, 0);
			event->head.type = EVENT_STATE;
			event->head.flags = (shutdown & SHUTDOWN_BOTH) == SHUTDOWN_BOTH ? FLAG_EOF : 0;
			event->head.pid = conn->pid;
			event->head.at = bpf_ktime_get_ns();
			event->head.conn = conn->id;
			event->old_state = old_state;
			event->new_state = new_state;
			event->error = error;
			event->egress_seq = read_position(sk, true);
			event->ingress_seq = read_position(sk, false);
			READ_KERNEL(event->received_seq, sk, OFF_tcp_sock_rcv_nxt);
			event->local_port = addresses.local_port;
			event->remote_port = addresses.remote_port;
			submit(event, sizeof(*event));
		} else {
			lost(0);
		}
	}
	/* A send that meets a reset is reported after the close. So the entry stays while a descriptor does. */
	if (new_state == TCP_CLOSE) {
		conn->closed = 1;
		if (!read_pointer(sk, OFF_sock_sk_socket))
			conns.delete(&sk);
	}
	return 0;
}

/* AF_UNIX has no state tracepoint: the enter side of close, for the last descriptor of a followed socket. Attached
 * only once a target uses such a socket, because sys_enter costs every system call of the host. */
int on_sys_enter(struct bpf_raw_tracepoint_args *ctx)
{
	if (ctx->args[1] != SYS_CLOSE || !is_target(bpf_get_current_pid_tgid() >> 32))
		return 0;
	struct io *io = read_io(ctx->args[0]);
	if (!io)
		return 0;
	u64 file = socket_file((u32)SYSCALL_ARG1(&io->regs));
	u64 sk = file ? sock_of_file(file) : 0;
	struct conn *conn = sk ? conns.lookup(&sk) : NULL;
	/* Forked processes and dup() share the file: only the last close ends the connection. */
	if (!conn || conn->family != AF_UNIX || read_pointer(file, OFF_FILE_COUNT) != FILE_COUNT_ONE)
		return 0;
	if (conn->announced) {
		struct event *event = events.ringbuf_reserve(sizeof(*event));
		if (event) {
			__builtin_memset(event, 0, sizeof(*event));
			event->type = EVENT_CLOSED;
			event->pid = bpf_get_current_pid_tgid() >> 32;
			event->at = bpf_ktime_get_ns();
			event->conn = conn->id;
			submit(event, sizeof(*event));
		} else {
			lost(0);
		}
	}
	conns.delete(&sk);
	return 0;
}
