/* SPDX-License-Identifier: GPL-2.0 */
/* Stub: bcc's map macros want a page size. */
#ifndef APITRACE_PAGE_H
#define APITRACE_PAGE_H
#define PAGE_SIZE 4096UL
#endif
