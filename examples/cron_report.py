#!/usr/bin/env python3
"""A report that cron files once a day, whatever happens: a crash, a second start, a power cut.

    0 7 * * *  cd /home/alice/reports && /home/alice/venv/bin/python cron_report.py

The turn has the day in its id: the same day's report is never made twice, and one that was cut off
goes on where it was.
"""

import datetime
import sys

from oxydra import Agent, OxydraError

today = datetime.date.today().isoformat()
try:
    with Agent("assistant", settings={"scheduler.enabled": False}) as agent:
        report = agent.run(
            f'write "All is well on {today}." to report-{today}.txt',
            session="reports",
            turn_id=f"report-{today}",
        )
        print(report)
except OxydraError as error:  # cron mails what stands here
    print(f"no report today: {error}", file=sys.stderr)
    sys.exit(error.exit_code)
