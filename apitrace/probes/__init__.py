"""Attach, poll, raw bytes to Event. The only package that knows bcc; `events` knows only the layout."""
