"""The gateway: `server`, `connection` and `http` do the I/O, `hub` holds sessions and turns,
`frontend` speaks the frames of docs/protocol.md."""
