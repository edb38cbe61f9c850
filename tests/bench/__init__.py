"""The benchmark behind `make bench`: what Oxydra costs beside the model, measured from outside.

`load_server` is the model server and `floor` a bare client of it, each a process of its own;
`daemon` starts and stops the real daemon, `client` talks to its gateway, `proc` reads /proc;
`measures` holds one function for each group of figures, `report` the goals and the table. No test
runs any of it: a figure depends on the machine, so it is read by people.
"""
