/* SPDX-License-Identifier: GPL-2.0 */
/* Empty stub: bcc includes this header and needs nothing of it. */
