"""Plays a run on the display of stderr: `player.py SECONDS_BETWEEN_EVENTS VERBOSITY OUTPUT_KIND`."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from display.happenings import whole_run

from rlm.display import show_on_stderr

OUTPUTS = {
    "plain": "hello\n",
    "hostile": "\x1b[2J\x1b[31mred\x07\n\u202eevil\n",
    "wide": "第一章租赁合同" * 40 + "\n",
    "huge": "x" * 1_000_000 + "\n",
    "many": "".join(f"line {n}\n" for n in range(2_000)),
}


def main():
    pause_s, verbosity, kind = float(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    display = show_on_stderr(verbosity=verbosity)
    for event in whole_run(output=OUTPUTS[kind], calls=40, step_s=0):
        display(replace(event, at=time.time()))
        time.sleep(pause_s)
    print("THE ANSWER")
    display.close()
    display.close()


main()
