"""The Model Context Protocol: servers of others as tools."""
