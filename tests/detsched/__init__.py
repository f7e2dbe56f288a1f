"""A deterministic scheduler for threaded Python programs, and the searches over its schedules.

    from tests.detsched import DPOR, Run, Verdict, explore

    def program(run: Run) -> None:                 # called afresh for every schedule
        lock, log = threading.Lock(), []
        for name in ("a", "b"):
            run.thread(lambda name=name: worker(lock, log, name), name)
        run.judge(lambda: Verdict(outcome=tuple(log)))

    print(explore(program, DPOR()).certificate())

Read in this order: ops.py (what is visible), task.py and scheduler.py (who runs), clock.py (time), primitives.py,
threads.py and patching.py (locks and threads), fields.py (memory), strategies.py and dpor.py (which schedules),
explore.py (the search and its result), drawing.py (schedules from Hypothesis); then the model of the mail world:
smtpmodel.py, modelserver.py, modelsocket.py, oracle.py, scenario.py.

Limits, to be stated beside every claim: a search is bounded by its scenario; switch points are lock, queue, thread and
socket operations and the fields of the classes named, so module globals, class attributes, a container reached through
an alias and the single steps of a loop over one are not seen (line_tracer is a second net); `sendall` is one step; the
server answers at once; a timed wait may time out at any moment, or as seldom as `timeouts` says; TLS, name look-up and
the C code of sockets are outside; each Python operation is taken as atomic, in one order for all threads; finalizers of
thread-local values run after their thread's last step, unscheduled.
"""

from .dpor import DPOR
from .explore import Failure, Program, Result, Run, Verdict, explore, line_tracer, replay, run_once
from .fields import watched
from .patching import patched
from .scheduler import Scheduler
from .strategies import PCT, DepthFirst, Preempt, RandomWalk, Replay, Strategy, read_schedule, write_schedule
from .task import Abort, NonDeterminism, UncontrolledBlocking

__all__ = [
    "DPOR",
    "PCT",
    "Abort",
    "DepthFirst",
    "Failure",
    "NonDeterminism",
    "Preempt",
    "Program",
    "RandomWalk",
    "Replay",
    "Result",
    "Run",
    "Scheduler",
    "Strategy",
    "UncontrolledBlocking",
    "Verdict",
    "explore",
    "line_tracer",
    "patched",
    "read_schedule",
    "replay",
    "run_once",
    "watched",
    "write_schedule",
]
