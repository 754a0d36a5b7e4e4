/* SPDX-License-Identifier: GPL-2.0 */
/* All that the programs know of arm64: registers at a syscall (arch/arm64/include/asm/ptrace.h) and its numbers.
 * Compiled in the tests, never run there: no such machine was at hand. */
#ifndef APITRACE_ARCH_H
#define APITRACE_ARCH_H

struct registers {
	__u64 regs[31];
	__u64 sp, pc, pstate;
	__u64 orig_x0;
	__s32 syscallno;
	__u32 unused;
};

/* x0 holds the result by the time the call returns, hence orig_x0. */
#define SYSCALL_NUMBER(r) ((long)(r)->syscallno)
#define SYSCALL_ARG1(r) ((r)->orig_x0)
#define SYSCALL_ARG2(r) ((r)->regs[1])
#define SYSCALL_ARG3(r) ((r)->regs[2])
#define SYSCALL_ARG4(r) ((r)->regs[3])
/* PSR_MODE32_BIT: an AArch32 process. */
#define SYSCALL_IS_COMPAT(r) (((r)->pstate & 0x10) != 0)

/* Where C has its first arguments: offsets in struct registers, and values. */
#define ARGUMENT_REGISTERS \
	{ \
		0, 8, 16, 24 \
	}
#define ARGUMENT_1(r) ((r)->regs[0])
#define ARGUMENT_2(r) ((r)->regs[1])
#define ARGUMENT_3(r) ((r)->regs[2])
#define ARGUMENT_4(r) ((r)->regs[3])

/* At a probe. The return address is in a register, so the stack pointer itself tells calls apart. */
#define REGISTER_SP(r) ((r)->sp)
#define REGISTER_IP(r) ((r)->pc)
#define REGISTER_RESULT(r) ((r)->regs[0])
#define REGISTER_FLAGS(r) 0
#define FLAGS_BELOW_OR_EQUAL 0
#define RETURNED_FROM(r) ((r)->sp)
#define GO_GOROUTINE(r) ((r)->regs[28])

#define SYS_CLOSE 57
#define SYS_READ 63
#define SYS_WRITE 64
#define SYS_READV 65
#define SYS_WRITEV 66
#define SYS_SENDFILE 71
#define SYS_SENDTO 206
#define SYS_RECVFROM 207
#define SYS_SENDMSG 211
#define SYS_RECVMSG 212
#define SYS_RECVMMSG 243
#define SYS_SENDMMSG 269
#define SYS_PREADV2 286
#define SYS_PWRITEV2 287

#endif
