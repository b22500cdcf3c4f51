"""Plant bugs in a copy of the tree, one at a time, and see the tests that are named turn red.

    python tests/planted/plant.py [--list] [--only NAME]...

Exits with 0 when each plant was caught by every test that it names, with 1 when one was missed,
and with 2 when the answer would mean nothing: a plant is stale, a named test is not green
without it, or pytest could not do its work.
"""

from __future__ import annotations

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from xml.etree import ElementTree

ROOT = Path(__file__).resolve().parent.parent.parent
if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))

from tests.planted.plants import PLANTS, Plant  # noqa: E402 - needs the path

LEFT_OUT = shutil.ignore_patterns(".*", "__pycache__", "*.egg-info", "build", "dist", "*.db*")
PATIENCE = 120.0
"""Seconds after which tests that hang are ended; for all tests without a plant, ten times that."""
RED, GREEN = 1, 0
"""What pytest exits with when tests failed, and when none did."""
MISSED, USELESS = 1, 2
"""What this script exits with when not all is well."""


class Useless(Exception):
    """The answer would mean nothing."""


class Copy:
    """A copy of the tree, in which bugs are planted."""

    def __init__(self, root: Path, place: Path) -> None:
        self.directory = place / "copy"
        self._report = place / "report.xml"
        place.mkdir()
        shutil.copytree(root, self.directory, ignore=LEFT_OUT, symlinks=True)
        self._environ = {
            **{name: value for name, value in os.environ.items() if "RUNQUEUE" not in name},
            "PYTHONPATH": str(self.directory),
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        }
        self._environ |= {
            name: value for name, value in os.environ.items() if name.startswith("RUNQUEUE_TEST_")
        }

    def check_imports(self) -> None:
        """Raise Useless unless this copy is what tests and their processes import."""
        code = "import runqueue, runqueue.cli, tests.helpers as h; print(runqueue.__file__, h.ROOT)"
        for where in (self.directory, Path("/")):
            shown = subprocess.check_output(
                [sys.executable, "-c", code], cwd=where, env=self._environ, text=True
            )
            package = self.directory / "runqueue" / "__init__.py"
            if shown.split() != [str(package), str(self.directory)]:
                raise Useless(f"not the copy is imported, but {shown.strip()}")

    def edit(self, plant: Plant) -> dict[Path, bytes]:
        """Plant a bug; return what the files held. Raises Useless when it does not fit exactly."""
        held: dict[Path, bytes] = {}
        texts: dict[Path, str] = {}
        for edit in plant.edits:
            path = self.directory / edit.file
            held.setdefault(path, path.read_bytes())
            text = texts.get(path) or held[path].decode()
            if text.count(edit.old) != 1:
                raise Useless(
                    f"the plant {plant.name} is stale: its text is {text.count(edit.old)} times "
                    f"in {edit.file}"
                )
            texts[path] = text.replace(edit.old, edit.new)
        for path, text in texts.items():
            compile(text, str(path), "exec")
            self._write(path, text.encode())
        return held

    def restore(self, held: dict[Path, bytes]) -> None:
        for path, content in held.items():
            self._write(path, content)

    def _write(self, path: Path, content: bytes) -> None:
        """What is compiled of a file is found by its time, in whole seconds, and its size."""
        before = path.stat().st_mtime
        path.write_bytes(content)
        os.utime(path, (before + 2, before + 2))

    def test(self, nodes: Sequence[str], patience: float) -> tuple[int, dict[str, str]]:
        """Execute tests; return pytest's exit code, and the outcome of each by its node id."""
        self._report.unlink(missing_ok=True)
        argv = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-p", "no:cacheprovider"]
        argv += ["-o", "junit_family=xunit1", f"--junit-xml={self._report}", *nodes]
        process = subprocess.Popen(
            argv,
            cwd=self.directory,
            env=self._environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            text=True,
        )
        try:
            said = process.communicate(timeout=patience)[0]
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            raise Useless(f"the tests hang: {' '.join(nodes)}") from None
        code = process.returncode
        if code not in (RED, GREEN) or not self._report.exists():
            raise Useless(f"pytest exited with {code}: {said[-2000:]}")
        return code, _outcomes(self._report)


def _outcomes(report: Path) -> dict[str, str]:
    """A test that fails and whose fixtures then fail, too, is there twice, and has failed."""
    found: dict[str, set[str]] = {}
    for case in ElementTree.parse(report).iter("testcase"):
        kinds = found.setdefault(f"{case.get('file')}::{case.get('name')}", set())
        kinds |= {child.tag for child in case}
    order = ("failure", "error", "skipped")
    return {
        node: next((kind for kind in order if kind in kinds), "passed")
        for node, kinds in found.items()
    }


def of_node(outcomes: dict[str, str], node: str) -> list[str]:
    """The outcomes of a named test, with all its parameters unless one is named."""
    return [
        outcome for each, outcome in outcomes.items() if each == node or each.startswith(f"{node}[")
    ]


def check_green(copy: Copy, plants: Sequence[Plant]) -> None:
    """Raise Useless unless every named test is there and passes without a plant."""
    nodes = sorted({node for plant in plants for node in plant.tests})
    _, outcomes = copy.test(nodes, 10 * PATIENCE)
    for node in nodes:
        found = of_node(outcomes, node)
        if not found or set(found) != {"passed"}:
            raise Useless(f"without a plant it is {found or 'not there'}: {node}")


def try_plant(copy: Copy, plant: Plant) -> tuple[int, list[str]]:
    """Return 0 when all tests caught the plant, else MISSED or USELESS, and what to print."""
    held = copy.edit(plant)
    began = time.monotonic()
    try:
        code, outcomes = copy.test(plant.tests, PATIENCE)
    except Useless as error:
        return USELESS, [f"{plant.name:<28} USELESS: {error}"]
    finally:
        copy.restore(held)
    seconds = time.monotonic() - began
    is_caught, lines = code == RED, []
    for node in plant.tests:
        found = of_node(outcomes, node)
        # An error is no failure: what a fixture stumbles over may be anything.
        is_red = bool(found) and set(found) == {"failure"}
        is_caught &= is_red
        lines.append(
            f"{plant.name:<28} {'caught' if is_red else 'MISSED'} {seconds:5.1f} s  {node}"
        )
    return 0 if is_caught else MISSED, lines


def check(plants: Sequence[Plant], root: Path = ROOT, jobs: int = 2) -> int:
    """Try plants in copies of a tree, some at once; print what became of each as a table.

    Returns the exit code.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="rq-planted-") as place:
        copies: SimpleQueue[Copy] = SimpleQueue()
        try:
            for number in range(jobs):
                copy = Copy(root, Path(place, str(number)))
                copy.check_imports()
                copies.put(copy)
            for plant in plants:  # before the first takes its time
                copy.restore(copy.edit(plant))
            check_green(copy, plants)
        except Useless as error:
            print(error, file=sys.stderr)
            return USELESS
        print(f"without a plant all named tests are green: {time.monotonic() - began:.1f} s")

        def in_an_idle_copy(plant: Plant) -> tuple[int, list[str]]:
            copy = copies.get()
            try:
                return try_plant(copy, plant)
            finally:
                copies.put(copy)

        verdicts = []
        with ThreadPoolExecutor(jobs) as pool:
            for verdict, lines in pool.map(in_an_idle_copy, plants):
                print("\n".join(lines), flush=True)
                verdicts.append(verdict)
    print(f"{verdicts.count(0)} of {len(plants)} caught in {time.monotonic() - began:.0f} s")
    failed = [plant.name for plant, verdict in zip(plants, verdicts, strict=True) if verdict]
    if failed:
        print(f"NOT CAUGHT: {', '.join(failed)}")
    return max(verdicts)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="only print the plants")
    parser.add_argument("--only", action="append", metavar="NAME", help="only this plant")
    options = parser.parse_args()
    plants = [plant for plant in PLANTS if options.only is None or plant.name in options.only]
    if options.only and len(plants) != len(set(options.only)):
        parser.error("there is no such plant; see --list")
    if options.list:
        for plant in plants:
            print(f"{plant.name:<28} {plant.what}")
        return 0
    return check(plants)


if __name__ == "__main__":
    sys.exit(main())
