"""The runner: `daemon` is one user's daemon, `guest` its side of the agent guest, `control` the
control socket, `workspace` the folders on the host."""
