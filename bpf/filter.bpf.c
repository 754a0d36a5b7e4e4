/* SPDX-License-Identifier: GPL-2.0 */
/* Who and what is traced, decided before anything is copied.
 *
 * Membership is a set of tgids. It is right at every moment because the events that change it are hooked: fork,
 * exec, rename, exit, and moves between cgroups (process.bpf.c). So an I/O call costs one lookup. */

#ifdef FILTER_PORTS
BPF_HASH(ports, u16, u8, 1024);
#endif
#ifdef FILTER_HOSTS
struct host {
	u8 bytes[16];
};
BPF_HASH(hosts, struct host, u8, 1024);
#endif

#ifdef TARGET_ALL
/* Who is apitrace itself. Not a -D: the programs must be the same in every run, so that they can be kept. */
BPF_ARRAY(self, u32, 1);
#endif

static __always_inline bool is_target(u32 pid)
{
#ifdef TARGET_ALL
	u32 first = 0;
	u32 *apitrace = self.lookup(&first);
	return apitrace && pid != *apitrace && pid != 0;
#else
	return targets.lookup(&pid) != NULL;
#endif
}

/* Whether a socket passes --port and --host. IPv4 addresses are kept in their IPv6-mapped form. */
static __always_inline bool passes(u16 family, u16 local_port, u16 remote_port, u8 *local, u8 *remote)
{
#ifdef FILTER_PORTS
	if (family == AF_UNIX)
		return false;
	if (!ports.lookup(&local_port) && !ports.lookup(&remote_port))
		return false;
#endif
#ifdef FILTER_HOSTS
	if (family == AF_UNIX)
		return false;
	struct host key = {};
	if (family == AF_INET) {
		key.bytes[10] = key.bytes[11] = 0xff;
		__builtin_memcpy(key.bytes + 12, local, 4);
	} else {
		__builtin_memcpy(key.bytes, local, 16);
	}
	if (hosts.lookup(&key))
		return true;
	if (family == AF_INET)
		__builtin_memcpy(key.bytes + 12, remote, 4);
	else
		__builtin_memcpy(key.bytes, remote, 16);
	return hosts.lookup(&key) != NULL;
#endif
	return true;
}
