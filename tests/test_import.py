"""Importing the package costs next to nothing until a name is asked for; then the whole of it is there, once."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import threadmail
from threadmail import _public

ROOT = Path(__file__).resolve().parents[1]

LOADED = "print(sorted(name for name in sys.modules if name.partition('.')[0] == 'threadmail'))"


def fresh(*lines: str) -> list[str]:
    """What a new interpreter says that runs these lines, every warning an error."""
    program = "\n".join(("import sys", *lines))
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.splitlines()


def test_the_plugin_that_pytest_always_loads_brings_only_itself_and_the_packages_it_is_in() -> None:
    plugin = "threadmail.testing.pytest_plugin"
    assert fresh(f"import {plugin}", LOADED) == [str(["threadmail", "threadmail.testing", plugin])]


def test_the_package_alone_imports_nothing_but_itself() -> None:
    look = "hasattr(threadmail, '__wrapped__'), hasattr(threadmail, 'testing'), dir(threadmail), threadmail.__version__"
    assert fresh("import threadmail", look, LOADED) == ["['threadmail']"]


def test_the_first_name_brings_all_of_them() -> None:
    lines = fresh(
        "import threadmail",
        "before = set(vars(threadmail))",
        "threadmail.Outcome",
        "print(sorted(set(threadmail.__all__) - vars(threadmail).keys()))",
        "modules = {name.split('.')[1] for name in sys.modules if name.startswith('threadmail.')} - {'_public'}",
        "print(modules == threadmail._MODULES, modules - vars(threadmail).keys())",
    )
    assert lines == ["[]", "True set()"]


#: As if the package had never been imported.
FORGET = "for name in [name for name in sys.modules if name.startswith('threadmail')]: del sys.modules[name]"


def test_a_module_is_there_without_an_import_of_its_own() -> None:
    names = [*(name for name in sorted(threadmail._MODULES) if not name.startswith("_")), "_session"]
    steps = [line for name in names for line in (FORGET, "import threadmail", f"print(threadmail.{name}.__name__)")]
    assert fresh(*steps) == [f"threadmail.{name}" for name in names]


def test_whichever_module_comes_first() -> None:
    firsts = ("errors", "sender", "cli", "testing", "_public")
    look = "import threadmail as t; from threadmail.receipt import Receipt; print(t.Receipt is Receipt, t.Phase.TLS)"
    steps = [line for name in firsts for line in (FORGET, f"import threadmail.{name}", look)]
    assert fresh(*steps) == ["True Phase.TLS"] * len(firsts)


def test_a_star_brings_the_public_names() -> None:
    assert fresh("from threadmail import *", "print(set(sys.modules['threadmail'].__all__) <= set(dir()))") == ["True"]


def test_the_names_are_listed_before_they_are_there() -> None:
    lines = fresh("import threadmail", "print(set(threadmail.__all__) - set(dir(threadmail)))", LOADED)
    assert lines == ["set()", "['threadmail']"]


def test_an_unknown_name_is_an_error_in_the_usual_words() -> None:
    with pytest.raises(AttributeError, match=r"^module 'threadmail' has no attribute 'Cilent'$"):
        _ = threadmail.Cilent  # type: ignore[attr-defined]
    with pytest.raises(ImportError, match="cannot import name 'Cilent' from 'threadmail'"):
        exec("from threadmail import Cilent")


def test_threads_that_ask_at_once_have_the_same() -> None:
    lines = fresh(
        "import threading, threadmail",
        "sys.setswitchinterval(1e-6)",
        "names = threadmail.__all__ * 2",
        "start, got = threading.Barrier(len(names)), []",
        "def ask(name):",
        "    start.wait(30)",
        "    got.append((name, getattr(threadmail, name)))",
        "threads = [threading.Thread(target=ask, args=(name,)) for name in names]",
        "for thread in threads: thread.start()",
        "for thread in threads: thread.join()",
        "print(len(got) == len(names), all(getattr(threadmail, name) is value for name, value in got))",
    )
    assert lines == ["True True"]


def test_an_import_that_is_struck_is_made_anew_by_the_next_who_asks() -> None:
    lines = fresh(
        "import threadmail",
        "class Strike:",
        "    def find_spec(self, name, path=None, target=None):",
        "        if name == 'threadmail.pool': raise KeyboardInterrupt",
        "sys.meta_path.insert(0, Strike())",
        "try: threadmail.Client",
        "except KeyboardInterrupt: print(set(threadmail.__all__) & vars(threadmail).keys())",
        "del sys.meta_path[0]",
        "print(threadmail.Client is threadmail.client.Client, set(threadmail.__all__) - vars(threadmail).keys())",
    )
    assert lines == ["set()", "True set()"]


def test_what_is_imported_is_what_is_public() -> None:
    tree = ast.parse(inspect.getsource(_public))
    aliases = [alias for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    assert [alias.asname for alias in aliases] == [alias.name for alias in aliases]
    assert sorted(alias.name for alias in aliases) == sorted(threadmail.__all__)


def test_what_type_checkers_are_told_of_modules_is_so() -> None:
    tree = ast.parse(inspect.getsource(threadmail))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module is None]
    told = {alias.name for node in imports for alias in node.names}
    assert told == {name for name in threadmail._MODULES if not name.startswith("_")}


@pytest.mark.parametrize("where", ["atexit", "thread"])
def test_a_program_whose_first_mail_comes_at_its_end_has_its_names(where: str) -> None:
    """The import of the executor is refused once the interpreter's exit has begun."""
    begin = {
        "atexit": "import atexit; atexit.register(last)",
        "thread": "import threading\nthreading.Thread(target=lambda: (threading.main_thread().join(), last())).start()",
    }[where]
    program = (
        f"import threadmail\ndef last(): print(threadmail.Client.__name__, threadmail.MailError.__name__)\n{begin}"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("Client MailError\n", "")


def test_a_name_that_a_test_has_set_stays() -> None:
    program = "import threadmail; threadmail.Client = 1; threadmail.Envelope; print(threadmail.Client)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert (done.stdout, done.stderr) == ("1\n", "")


@pytest.mark.parametrize("during", ["config.py", "client.py", "_dispatch/worker.py", "pool.py", "sender.py"])
def test_a_signal_handler_in_the_middle_of_the_import_has_the_names_that_can_be_had(during: str) -> None:
    """Of SIGTERM, say: `except threadmail.MailError`, and an outcome for the log. It was an AttributeError."""
    lines = fresh(
        "import threadmail",
        "def handler(frame, event, _):",
        f"    if event == 'call' and frame.f_code.co_filename.endswith('threadmail/{during}'):",
        "        sys.setprofile(None)",
        "        print(threadmail.Outcome.SENT, threadmail.MailError.__name__, threadmail.errors.__name__)",
        "        got.append(threadmail.MailError)",
        "got = []",
        "sys.setprofile(handler)",
        "print(threadmail.Client.__name__, threadmail.MailError is got[0])",
    )
    assert lines == ["Outcome.SENT MailError threadmail.errors", "Client True"]


def test_a_name_that_is_being_imported_under_a_signal_handler_is_not_there_yet() -> None:
    lines = fresh(
        "import threadmail",
        "def handler(frame, event, _):",
        "    if event == 'call' and frame.f_code.co_filename.endswith('threadmail/sender.py'):",
        "        sys.setprofile(None)",
        "        print(hasattr(threadmail, 'ThreadedSender'))",
        "sys.setprofile(handler)",
        "print(threadmail.ThreadedSender.__name__)",
    )
    assert lines == ["False", "ThreadedSender"]


def test_each_name_is_found_in_the_module_that_has_it() -> None:
    source, find = inspect.getsource(_public), vars(threadmail)["_from_its_module"]
    assert [name for name in threadmail.__all__ if find(name, source) is not vars(_public)[name]] == []
