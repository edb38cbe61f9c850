"""What runs in a guest, packaged as `oxydra.guest` so that wheels carry it. The scripts beside this
file are run, not imported.
"""
