"""Bytes to protocol-neutral messages. Sans-IO: no clock, no files, no logging."""
