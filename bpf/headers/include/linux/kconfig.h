/* SPDX-License-Identifier: GPL-2.0 */
/* Stub, so that bcc needs no kernel headers: bcc includes this file first. */
#ifndef APITRACE_KCONFIG_H
#define APITRACE_KCONFIG_H
#define CONFIG_BPF_SYSCALL 1
#endif
