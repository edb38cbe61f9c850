"""Is it well? `health` looks at a user's daemon from outside, for cron; `examine` at everything,
and names for each trouble the one command that ends it, for people.

`base` says what a finding is and what checks may look at, `registry` which there are: another one
is a function and a line there. No thread is started here.
"""

from oxydra.doctor.base import EXIT_CODES, Case, Finding, Level, worst
from oxydra.doctor.bounded import within
from oxydra.doctor.daemon import health
from oxydra.doctor.examine import examine, repair

__all__ = [
    "EXIT_CODES",
    "Case",
    "Finding",
    "Level",
    "examine",
    "health",
    "repair",
    "within",
    "worst",
]
