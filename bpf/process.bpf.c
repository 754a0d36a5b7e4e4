/* SPDX-License-Identifier: GPL-2.0 */
/* Who is a target: kept true by fork, exec, rename, exit and cgroup moves. */

/* Stopping. A process that may use TLS before user space has placed its probes is stopped for that time, where STOP
 * allows it: 0 never, 1 unless it has a terminal (its shell would report a stopped job), 2 always. */

#define SIGSTOP 19

static __always_inline bool may_stop(void)
{
	if (STOP == 2)
		return true;
	if (STOP == 0)
		return false;
	u64 signal = read_pointer(bpf_get_current_task(), OFF_task_struct_signal);
	return read_pointer(signal, OFF_signal_struct_tty) == 0;
}

/* Stop the process, where that may be, and have the event say so. The event must have its time, by which it is told from
 * those of other stops, and its place in the ring buffer: else nobody would let the process go.
 *
 * A process may be stopped once and two events say so: when two of its threads come to it at a time, or when the kernel
 * begins a probed instruction again after a signal (handle_singlestep in kernel/events/uprobes.c). */
static __always_inline void stop_current(struct event *event)
{
	u32 pid = event->pid;
	u64 at = event->at;
	if (may_stop() && stopped.update(&pid, &at) == 0) {
		event->flags = FLAG_STOPPED;
		bpf_send_signal(SIGSTOP);
	}
}

static __always_inline void submit_now(void *event)
{
	count(COUNT_EVENTS, 1);
	events.ringbuf_submit(event, RB_FORCE_WAKEUP);
}

static __always_inline void stop(u8 type, u32 pid)
{
	struct event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lost(0);
		return;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->type = type;
	event->pid = pid;
	event->tid = (u32)bpf_get_current_pid_tgid();
	event->at = bpf_ktime_get_ns();
	stop_current(event);
	submit_now(event);
}

#ifdef TARGET_CGROUPS
struct cgroup_key {
	u64 id; /* kernfs node id: the directory's inode number */
	u64 hierarchy;
};
BPF_HASH(cgroups, struct cgroup_key, u8, 1024);

/* Deeper nesting than Kubernetes inside systemd inside a container has been met nowhere. */
#define CGROUP_DEPTH 16

static __always_inline bool cgroup_matches(u64 cgroup)
{
	u32 hierarchy = 0;
	READ_KERNEL(hierarchy, read_pointer(cgroup, OFF_cgroup_root), OFF_cgroup_root_hierarchy_id);
	for (int i = 0; i < CGROUP_DEPTH; i++) {
		struct cgroup_key key = {};
		key.id = read_pointer(read_pointer(cgroup, OFF_cgroup_kn), OFF_kernfs_node_id);
		key.hierarchy = hierarchy;
		if (cgroups.lookup(&key))
			return true;
		/* struct cgroup begins with its css, whose parent is the parent cgroup's. */
		cgroup = read_pointer(cgroup, OFF_cgroup_self_parent);
		if (!cgroup)
			return false;
	}
	return false;
}

/* Whether a new task was put straight into a target's cgroup (clone3 with CLONE_INTO_CGROUP: v2 only). */
static __always_inline bool born_inside(u64 task)
{
	return cgroup_matches(read_pointer(read_pointer(task, OFF_task_struct_cgroups), OFF_css_set_dfl_cgrp));
}

int on_cgroup_attach_task(struct bpf_raw_tracepoint_args *ctx)
{
	u64 cgroup = ctx->args[0], task = ctx->args[2];
	u32 pid = 0;
	u32 hierarchy = 0;
	READ_KERNEL(pid, task, OFF_task_struct_tgid);
	u8 *known = targets.lookup(&pid);
	if (cgroup_matches(cgroup)) {
		u8 flags = TARGET_BY_CGROUP | (known ? *known : 0);
		targets.update(&pid, &flags);
		return 0;
	}
	/* Out of it again, if that was the move's hierarchy. */
	READ_KERNEL(hierarchy, read_pointer(cgroup, OFF_cgroup_root), OFF_cgroup_root_hierarchy_id);
	if (known && (*known & TARGET_REASONS) == TARGET_BY_CGROUP && hierarchy < 64 &&
		(CGROUP_HIERARCHIES >> hierarchy & 1))
		targets.delete(&pid);
	return 0;
}
#endif

#ifdef TARGET_COMMS
struct comm {
	char name[16];
};
BPF_HASH(comms, struct comm, u8, 256);

static __always_inline void match_comm(u32 pid, struct comm *comm)
{
	u8 flags = TARGET_BY_NAME;
	if (comms.lookup(comm) && !targets.lookup(&pid))
		targets.update(&pid, &flags);
}

int on_task_rename(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = ctx->args[0];
	u32 pid = 0, tid = 0;
	struct comm comm = {};
	READ_KERNEL(pid, task, OFF_task_struct_tgid);
	READ_KERNEL(tid, task, OFF_task_struct_pid);
	bpf_probe_read_kernel_str(comm.name, sizeof(comm.name), (void *)ctx->args[1]);
	if (pid == tid) /* a thread's own name is not the process's */
		match_comm(pid, &comm);
	return 0;
}
#endif

int on_fork(struct bpf_raw_tracepoint_args *ctx)
{
	u64 parent = ctx->args[0], child = ctx->args[1];
	u32 pid = 0, child_pid = 0;
	READ_KERNEL(pid, parent, OFF_task_struct_tgid);
	READ_KERNEL(child_pid, child, OFF_task_struct_tgid);
	if (pid == child_pid) /* a thread */
		return 0;
	u8 flags = 0;
#ifndef TARGET_ALL
	u8 *known = targets.lookup(&pid);
	if (known && (*known & TARGET_BY_CGROUP))
		flags |= TARGET_BY_CGROUP;
	if (known && FOLLOW)
		flags |= *known;
	flags &= ~(TARGET_PROBED | TARGET_BORN);
	/* A child with a memory of its own has its parent's libraries, but not the probes in them. */
	if (known && flags && (*known & TARGET_PROBED) &&
		read_pointer(parent, OFF_task_struct_mm) != read_pointer(child, OFF_task_struct_mm))
		flags |= TARGET_BORN;
#ifdef TARGET_CGROUPS
	if (!flags && born_inside(child))
		flags = TARGET_BY_CGROUP;
#endif
	if (!flags)
		return 0;
	targets.update(&child_pid, &flags);
#endif
	struct fork_event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lost(0);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->head.type = EVENT_FORK;
	event->head.pid = pid;
	event->head.at = bpf_ktime_get_ns();
	event->child = child_pid;
	submit(event, sizeof(*event));
	return 0;
}

int on_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
#ifdef TARGET_COMMS
	struct comm comm = {};
	bpf_get_current_comm(comm.name, sizeof(comm.name));
	match_comm(pid, &comm);
#endif
	if (!is_target(pid))
		return 0;
	struct exec_event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lost(0);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->head.type = EVENT_EXEC;
	event->head.pid = pid;
	event->head.tid = pid;
	event->head.at = bpf_ktime_get_ns();
	bpf_get_current_comm(event->comm, sizeof(event->comm));
	bpf_probe_read_kernel_str(event->filename, sizeof(event->filename),
		(void *)read_pointer(ctx->args[2], OFF_linux_binprm_filename));
#ifndef TARGET_ALL
	/* A new memory: what was placed is gone. */
	u8 *known = targets.lookup(&pid);
	if (known && (*known & (TARGET_PROBED | TARGET_BORN))) {
		u8 flags = *known & ~(TARGET_PROBED | TARGET_BORN);
		targets.update(&pid, &flags);
	}
#endif
	stop_current(&event->head);
	submit_now(event);
	return 0;
}

#ifndef TARGET_ALL
/* A forked child has no memory of its own but what it writes to, and the kernel gives it that at a page fault: so it is
 * found at its first, before it can have done anything with TLS. */
int on_page_fault(struct bpf_raw_tracepoint_args *ctx)
{
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	u8 *known = targets.lookup(&pid);
	if (!known || !(*known & TARGET_BORN))
		return 0;
	u8 flags = *known & ~TARGET_BORN;
	targets.update(&pid, &flags);
	stop(EVENT_BORN, pid);
	return 0;
}
#endif

int on_exit(struct bpf_raw_tracepoint_args *ctx)
{
	u64 task = bpf_get_current_task();
	u32 pid = bpf_get_current_pid_tgid() >> 32;
	s32 live = 0;
	if (!is_target(pid))
		return 0;
	/* Counted down before the tracepoint: 0 for the last thread (kernel/exit.c, do_exit). */
	READ_KERNEL(live, read_pointer(task, OFF_task_struct_signal), OFF_signal_struct_live);
	if (live > 0)
		return 0;
#ifndef TARGET_ALL
	targets.delete(&pid);
#endif
	struct event *event = events.ringbuf_reserve(sizeof(*event));
	if (!event) {
		lost(0);
		return 0;
	}
	__builtin_memset(event, 0, sizeof(*event));
	event->type = EVENT_EXIT;
	event->pid = pid;
	event->at = bpf_ktime_get_ns();
	submit(event, sizeof(*event));
	return 0;
}
