/* SPDX-License-Identifier: GPL-2.0 */
/* Stub: no program here depends on the version; bcc wants the macros to exist. */
#ifndef APITRACE_VERSION_H
#define APITRACE_VERSION_H
#define LINUX_VERSION_CODE 0x050800
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#endif
