"""The Model Context Protocol, both ends: servers of others as tools, and the agent as a server."""
