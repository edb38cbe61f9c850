"""The terminal client: `client` talks to a gateway, `model` decides, `view` lays out, `app` does
the I/O.
"""
