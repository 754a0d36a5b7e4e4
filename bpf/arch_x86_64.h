/* SPDX-License-Identifier: GPL-2.0 */
/* All that the programs know of x86-64: registers at a syscall (arch/x86/include/asm/ptrace.h) and its numbers. */
#ifndef APITRACE_ARCH_H
#define APITRACE_ARCH_H

struct registers {
	__u64 r15, r14, r13, r12, bp, bx, r11, r10, r9, r8, ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};

/* Number and arguments are intact until the call returns: the result goes to ax only. */
#define SYSCALL_NUMBER(r) ((long)(r)->orig_ax)
#define SYSCALL_ARG1(r) ((r)->di)
#define SYSCALL_ARG2(r) ((r)->si)
#define SYSCALL_ARG3(r) ((r)->dx)
#define SYSCALL_ARG4(r) ((r)->r10)
/* __USER_CS is 0x33 for 64-bit code; int 0x80 and 32-bit processes have another. */
#define SYSCALL_IS_COMPAT(r) ((r)->cs != 0x33)

/* Where C has its first arguments: offsets in struct registers, and values. */
#define ARGUMENT_REGISTERS \
	{ \
		112, 104, 96, 88 \
	}
#define ARGUMENT_1(r) ((r)->di)
#define ARGUMENT_2(r) ((r)->si)
#define ARGUMENT_3(r) ((r)->dx)
#define ARGUMENT_4(r) ((r)->cx)

/* At a probe. A return probe runs when the return address has been popped. */
#define REGISTER_SP(r) ((r)->sp)
#define REGISTER_IP(r) ((r)->ip)
#define REGISTER_RESULT(r) ((r)->ax)
#define REGISTER_FLAGS(r) ((r)->flags)
#define FLAGS_BELOW_OR_EQUAL 0x41 /* carry, zero */
#define RETURNED_FROM(r) ((r)->sp - 8)
#define GO_GOROUTINE(r) ((r)->r14)

#define SYS_READ 0
#define SYS_WRITE 1
#define SYS_CLOSE 3
#define SYS_READV 19
#define SYS_WRITEV 20
#define SYS_SENDFILE 40
#define SYS_SENDTO 44
#define SYS_RECVFROM 45
#define SYS_SENDMSG 46
#define SYS_RECVMSG 47
#define SYS_RECVMMSG 299
#define SYS_SENDMMSG 307
#define SYS_PREADV2 327
#define SYS_PWRITEV2 328

#endif
